"""Choosing a backend and threads: arguments, use_backend, environment variables; explain and show_config."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce
from fastce import _threads
from matrix import VARIANTS, Engine, expected_isas

X, Y = np.zeros((4, 3), np.float32), np.zeros(4, int)


def run(script: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these environment variables and without those of fastce and OpenMP that this process has."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCE_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


SHOW = """
import fastce, numpy as np
plan = fastce.explain(np.zeros((4096, 1024), np.float32), np.zeros(4096, int))
print(plan.backend, plan.variant, plan.num_threads)
print(plan)
"""


def plan_of(**env: str) -> list[str]:
    return run(SHOW, **env).stdout.splitlines()[0].split()


# --- the backend ------------------------------------------------------------------------------------------------------


def test_auto_is_the_first_of_the_table() -> None:
    assert fastce.explain(X, Y).backend == fastce.available_backends()[0] == "cython"


def test_the_argument_comes_first() -> None:
    with fastce.use_backend("numba"):
        assert fastce.explain(X, Y, backend="numpy").backend == "numpy"


def test_use_backend_nests_and_ends() -> None:
    with fastce.use_backend("numba"):
        assert fastce.explain(X, Y).backend == "numba"
        with fastce.use_backend("numpy", num_threads=1):
            assert fastce.explain(X, Y).backend == "numpy"
        with fastce.use_backend("auto"):
            assert fastce.explain(X, Y).backend == "cython"
        assert fastce.explain(X, Y).backend == "numba"
    assert fastce.explain(X, Y).backend == "cython"


def test_use_backend_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), fastce.use_backend("numpy"):
        raise KeyError
    assert fastce.explain(X, Y).backend == "cython"


def test_use_backend_refuses_at_once() -> None:
    with pytest.raises(ValueError, match=r"auto, cython, numba, numpy.*'torch'"):
        fastce.use_backend("torch")
    for bad, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_threads"):
            fastce.use_backend("numpy", num_threads=bad)  # type: ignore[arg-type]


def test_use_backend_is_local_to_a_thread() -> None:
    """A thread begun inside does not inherit it, and its own choice is not seen outside."""
    seen: list[str] = []

    def work() -> None:
        seen.append(fastce.explain(X, Y).backend)
        with fastce.use_backend("numba"):
            seen.append(fastce.explain(X, Y).backend)

    with fastce.use_backend("numpy"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert fastce.explain(X, Y).backend == "numpy"
    assert seen == ["cython", "numba"]


def test_use_backend_is_local_to_a_task() -> None:
    """Two asyncio tasks that alternate inside their blocks keep their own choice."""

    async def work(name: str, pause: float) -> list[str]:
        seen = []
        with fastce.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(pause)
                seen.append(fastce.explain(X, Y).backend)
        return seen

    async def main() -> Any:
        return await asyncio.gather(work("numba", 0.001), work("numpy", 0.0015), work("cython", 0.001))

    assert asyncio.run(main()) == [["numba"] * 3, ["numpy"] * 3, ["cython"] * 3]
    assert fastce.explain(X, Y).backend == "cython"


@pytest.mark.parametrize("name", VARIANTS)
def test_environment_backend(name: str) -> None:
    assert plan_of(FASTCE_BACKEND=name)[0] == name
    script = SHOW + "\nwith fastce.use_backend('numpy'): print(fastce.explain([[0.0]], [0]).backend)"
    assert run(script, FASTCE_BACKEND=name).stdout.splitlines()[-1] == "numpy"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FASTCE_BACKEND", "torch"),
        ("FASTCE_NUM_THREADS", "0"),
        ("FASTCE_NUM_THREADS", "-2"),
        ("FASTCE_NUM_THREADS", "many"),
        ("FASTCE_NUM_THREADS", "1.5"),
        ("FASTCE_ISA", "sse9"),
    ],
)
def test_an_unknown_value_raises_at_first_use(name: str, value: str) -> None:
    """Not at import; then at every use, naming the variable, the value and what is accepted."""
    script = """
import fastce
for _ in range(2):
    try:
        fastce.cross_entropy([[0.0, 1.0]], [0])
    except ValueError as error:
        print(error)
"""
    lines = run(script, **{name: value}).stdout.splitlines()
    assert len(lines) == 2
    assert all(name in line and repr(value) in line for line in lines)


def test_an_unsupported_isa_raises() -> None:
    """An ISA that fastce knows and this CPU does not run is an error that says so, not another ISA."""
    other = next(isa for isa in ("neon", "avx2", "avx512") if isa not in expected_isas())
    script = "import fastce\nfastce.cross_entropy([[0.0, 1.0]], [0])"
    done = run(script, check=False, FASTCE_ISA=other)
    assert done.returncode == 1
    assert "ValueError: FASTCE_ISA" in done.stderr
    assert repr(other) in done.stderr


@pytest.mark.parametrize("isa", expected_isas())
def test_the_forced_isa_runs(isa: str) -> None:
    """Both explain and show_config name it, and the losses have the bits of that variant and of no other."""
    script = (
        SHOW
        + """
print(fastce.show_config("dicts")["backends"]["cython"]["isa"])
rng = np.random.default_rng(1)
x, y = (rng.standard_normal((500, 997)) * 3).astype(np.float32), rng.integers(0, 997, 500)
print(fastce.cross_entropy(x, y, reduction="none").tobytes().hex())
"""
    )
    first, *_, used, bits = run(script, FASTCE_ISA=isa).stdout.splitlines()
    assert first.split()[:2] == ["cython", isa]
    assert used == isa
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((500, 997)) * 3).astype(np.float32), rng.integers(0, 997, 500)
    for other in expected_isas():
        mine = Engine("cython", other).cross_entropy(x, y, reduction="none").tobytes().hex()
        assert (mine == bits) == (other == isa)


# --- a backend that is not there --------------------------------------------------------------------------------------

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
import fastce
"""


def test_a_named_backend_that_cannot_run_raises() -> None:
    """BackendUnavailableError with the reason and the command that would install it; "auto" goes on without it."""
    script = (
        BLOCKED.format(blocked={"numba"})
        + """
assert fastce.available_backends() == ("cython", "numpy")
assert fastce.cross_entropy([[0.0, 1.0]], [0]) > 0
for call in (lambda: fastce.cross_entropy([[0.0, 1.0]], [0], backend="numba"), lambda: fastce.use_backend("numba")):
    for _ in range(2):
        try:
            call()
        except fastce.BackendUnavailableError as error:
            print(error)
config = fastce.show_config("dicts")["backends"]["numba"]
assert not config["available"] and "blocked" in config["reason"] and "pip install" in config["install"]
"""
    )
    lines = run(script).stdout.splitlines()
    assert len(lines) == 4
    assert all("numba" in line and "blocked" in line and 'pip install "fastce[numba]"' in line for line in lines)


def test_a_named_backend_from_the_environment_raises_too() -> None:
    script = BLOCKED.format(blocked={"numba"}) + "\nfastce.cross_entropy([[0.0, 1.0]], [0])"
    done = run(script, check=False, FASTCE_BACKEND="numba")
    assert done.returncode == 1
    assert 'pip install "fastce[numba]"' in done.stderr


def test_auto_passes_over_what_cannot_run_and_says_so() -> None:
    script = (
        BLOCKED.format(blocked={"numba", "llvmlite"})
        + """
sys.modules["fastce._core"] = None
import fastce
plan = fastce.explain([[0.0, 1.0]], [0])
print(plan.backend, fastce.available_backends())
print(plan)
"""
    )
    lines = run(script).stdout.splitlines()
    assert lines[0] == "numpy ('numpy',)"
    assert sum("cannot run" in line for line in lines) == 2


def test_the_error_is_a_record() -> None:
    error = fastce.BackendUnavailableError("numba", "why", "how")
    assert isinstance(error, RuntimeError)
    assert (error.backend, error.reason, error.install) == ("numba", "why", "how")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_without_ml_dtypes() -> None:
    """Everything but bfloat16 works where ml_dtypes is not installed."""
    script = (
        BLOCKED.format(blocked={"ml_dtypes"})
        + """
import numpy as np
for kind in (np.float16, np.float32, np.float64):
    for name in fastce.available_backends():
        assert fastce.cross_entropy(np.zeros((2, 3), kind), [0, 1], backend=name) > 1
print(fastce.show_config("dicts")["versions"]["ml_dtypes"])
"""
    )
    assert run(script).stdout == "None\n"


# --- threads ----------------------------------------------------------------------------------------------------------


def test_where_the_number_of_threads_comes_from() -> None:
    """Argument, use_backend, FASTCE_NUM_THREADS, OMP_NUM_THREADS, then the machine."""
    script = """
import fastce
def line():
    count = fastce.show_config("dicts")["num_threads"]
    print(count["count"], count["source"])
line()
with fastce.use_backend("auto", num_threads=7):
    line()
    with fastce.use_backend("numpy"):
        line()
"""
    machine, inside, nested = run(script).stdout.splitlines()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= int(machine.split()[0]) <= (available or 1)
    assert inside.startswith("7 ")
    assert "use_backend" in inside
    assert nested == inside
    assert run(script, OMP_NUM_THREADS="3").stdout.splitlines()[0] == "3 OMP_NUM_THREADS"
    assert run(script, OMP_NUM_THREADS="5,2").stdout.splitlines()[0] == "5 OMP_NUM_THREADS"
    assert run(script, OMP_NUM_THREADS="3", FASTCE_NUM_THREADS="4").stdout.splitlines()[0] == "4 FASTCE_NUM_THREADS"
    assert run(script, FASTCE_NUM_THREADS="4").stdout.splitlines()[1].startswith("7 ")


def test_a_small_problem_gets_one_thread_and_a_large_one_all() -> None:
    large = np.broadcast_to(np.float32(0), (4096, 4096))
    labels = np.zeros(4096, int)
    assert fastce.explain(X, Y, num_threads=8).num_threads == 1
    assert fastce.explain(large, labels, num_threads=8).num_threads == 8
    assert fastce.explain(large, labels, num_threads=8, backend="numpy").num_threads == 1
    assert plan_of(FASTCE_NUM_THREADS="1")[2] == "1"
    assert plan_of(FASTCE_NUM_THREADS="2")[2] == "2"
    # The argument is a limit and not an order.
    with fastce.use_backend("auto", num_threads=3):
        assert fastce.explain(large, labels).num_threads == 3


def test_affinity_limits_threads() -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    script = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" + SHOW
    assert run(script).stdout.splitlines()[0].split()[2] == "1"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """Of version 2 and version 1, of this group and of those above it."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _threads.cgroup_quota(str(tmp_path)) == quota


# --- explain and show_config ------------------------------------------------------------------------------------------


def test_explain_is_a_frozen_record_that_reads_well() -> None:
    plan = fastce.explain(X, Y)
    with pytest.raises(AttributeError):
        plan.backend = "numpy"
    first, *reasons = str(plan).splitlines()
    assert plan.backend in first
    assert plan.variant in first
    assert plan.kernel in first
    assert any("backend" in line for line in reasons)
    assert any("thread" in line for line in reasons)


def test_explain_takes_the_options_of_a_call_and_its_errors() -> None:
    for options in ({"label_smoothing": 0.1}, {"weight": np.ones(3)}, {"reduction": "none"}, {"z_loss": 0.1}):
        assert fastce.explain(X, Y, **options).kernel
    with pytest.raises(ValueError, match="label_smoothing"):
        fastce.explain(X, Y, label_smoothing=2)
    with pytest.raises(TypeError, match=r"unknown|unexpected"):
        fastce.explain(X, Y, unknown=2)


def test_the_kernel_does_not_depend_on_the_number_of_rows() -> None:
    """It depends on the number of classes, the dtype and the class axis' stride; `auto` on none of them."""
    for backend in VARIANTS:
        for n_classes in (2, 40, 5000):
            plans = [
                fastce.explain(np.zeros((n, n_classes), np.float32), np.zeros(n, int), backend=backend)
                for n in (1, 50, 3000)
            ]
            assert len({plan.kernel for plan in plans}) == 1
    assert {fastce.explain(np.zeros((n, 3)), np.zeros(n, int)).backend for n in (1, 10, 10**5)} == {"cython"}


def test_show_config_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    config = fastce.show_config("dicts")
    assert capsys.readouterr().out == ""
    assert fastce.show_config() is None
    text = capsys.readouterr().out
    assert list(config["backends"]) == ["cython", "numba", "numpy"]
    assert all(backend["available"] for backend in config["backends"].values())
    for word in (fastce.__version__, np.__version__, "openmp", *expected_isas(), "num_threads"):
        assert word in text
    assert config["backends"]["cython"]["isa"] == expected_isas()[0]
    with pytest.raises(ValueError, match="'stdout' or 'dicts'"):
        fastce.show_config("json")  # type: ignore[call-overload]
