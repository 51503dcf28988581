"""fastce inside Numba's compiled code: the same bits and errors as the Python functions on the C core give.

Compilation takes the time here: few functions, each used for all that its types allow.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit, prange
from numba.core import types
from numba.core.errors import TypingError

import cases
import checks
import fastce
from fastce import _njit

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent
C_CORE: dict[str, Any] = {"backend": "cython", "num_threads": 1}


def same(got: Any, want: Any) -> None:
    assert np.shape(got) == np.shape(want)
    assert np.asarray(got).dtype == np.asarray(want).dtype
    assert checks.same_bits(got, want), (got, want)


@njit
def plain(x, labels):  # type: ignore[no-untyped-def]
    return fastce.cross_entropy(x, labels)


@njit
def with_options(x, t, axis, weight, rows, ignore_index, smoothing, z, denominator, base):  # type: ignore[no-untyped-def]
    """All options, as values that are known at run time only."""
    mean = fastce.cross_entropy(
        x,
        t,
        axis=axis,
        weight=weight,
        sample_weight=rows,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        z_loss=z,
        denominator=denominator,
        base=base,
    )
    losses, grad = fastce.cross_entropy_with_grad(
        x,
        t,
        axis=axis,
        weight=weight,
        sample_weight=rows,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        z_loss=z,
        reduction="none",
        base=base,
        grad_output=rows,
    )
    return mean, losses, grad


def call_with_options(x: Array, t: Array, **changed: Any) -> tuple[Any, Any]:
    """with_options, and the same calls of Python."""
    axis = changed.get("axis", -1)
    n_classes, positions = x.shape[axis], np.delete(x.shape, axis)
    options: dict[str, Any] = {
        "axis": axis,
        "weight": np.linspace(0.5, 2, n_classes),
        "sample_weight": np.linspace(0, 3, int(np.prod(positions))).reshape(positions),
        "ignore_index": 1,
        "label_smoothing": 0.125,
        "z_loss": 1e-3,
        "denominator": 7.5,
        "base": 2.0,
    } | changed
    common = {name: value for name, value in options.items() if name != "denominator"}
    row_scale = options["sample_weight"]

    def python() -> tuple[Any, Any, Any]:
        mean = fastce.cross_entropy(x, t, **options, **C_CORE)
        return mean, *fastce.cross_entropy_with_grad(x, t, **common, reduction="none", grad_output=row_scale, **C_CORE)

    return lambda: with_options(x, t, *options.values()), python


@njit
def family(x, labels):  # type: ignore[no-untyped-def]
    return (
        fastce.cross_entropy(x, labels, reduction="sum"),
        fastce.cross_entropy(x, labels, reduction="none"),
        fastce.cross_entropy_with_grad(x, labels),
        fastce.softmax(x),
        fastce.log_softmax(x),
        fastce.logsumexp(x),
    )


def call_family(x: Array, labels: Array) -> tuple[Any, ...]:
    return (
        fastce.cross_entropy(x, labels, reduction="sum", **C_CORE),
        fastce.cross_entropy(x, labels, reduction="none", **C_CORE),
        fastce.cross_entropy_with_grad(x, labels, **C_CORE),
        fastce.softmax(x, **C_CORE),
        fastce.log_softmax(x, **C_CORE),
        fastce.logsumexp(x, **C_CORE),
    )


def torture(rng: np.random.Generator, n_classes: int, dtype: Any) -> tuple[Array, Array]:
    """Rows of every kind: ignored, excluded classes, NaN, infinities, tiny losses, large offsets."""
    x = cases.normal(rng, (13, n_classes), dtype)
    y = cases.labels(rng, 13, n_classes)
    x[1] = np.nan
    y[1] = -100
    x[2, 0], x[3, -1] = np.nan, np.inf
    x[4] = -np.inf
    x[5, y[5]] = -np.inf
    x[6, y[6]] = 60
    x[7] += 1e4
    return x, y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_as_python(dtype: Any, rng: np.random.Generator) -> None:
    """Whatever the number of classes and rows, with NaN, infinities and rows that are ignored."""
    for n_classes in (1, 10, 100):
        x, y = torture(rng, n_classes, dtype)
        for rows in (13, 1, 0):
            got, want = family(x[:rows], y[:rows]), call_family(x[:rows], y[:rows])
            assert type(got[2]) is fastce.LossAndGrad
            for a, b in zip(got, want, strict=True):
                if isinstance(b, fastce.LossAndGrad):
                    same(a.loss, b.loss)
                    same(a.grad, b.grad)
                else:
                    same(a, b)
        same(plain(x[8:], y[8:]), fastce.cross_entropy(x[8:], y[8:], **C_CORE))


def test_against_the_oracle(rng: np.random.Generator) -> None:
    x, y = cases.normal(rng, (13, 10), np.float32), cases.labels(rng, 13, 10)
    _, losses, (_, grad), *_ = family(x, y)
    want = checks.answer(x, y, {"reduction": "none"})
    checks.check_value(losses, want, x.dtype, "none")
    checks.check_value(plain(x, y), checks.answer(x, y, {}), x.dtype, "mean")
    checks.check_grad(grad, checks.answer(x, y, {}), x.dtype)


def test_options(rng: np.random.Generator) -> None:
    """All of them, for arrays of any strides, class axis and labels; for a dense target."""
    x = np.asfortranarray(cases.normal(rng, (6, 12, 10), np.float32))[::-1, 1::2]
    for axis in (-1, 0, 1):
        n_classes, positions = x.shape[axis], np.delete(x.shape, axis)
        y = np.asfortranarray(cases.labels(rng, tuple(positions), n_classes))[::-1, ::-1]
        for changed in ({}, {"label_smoothing": 0.0, "z_loss": 0.0}):
            got, want = call_with_options(x, y, axis=axis, **changed)
            for a, b in zip(got(), want(), strict=True):
                same(a, b)
    got, want = call_with_options(x, cases.dense(rng, x.shape, np.float64))
    for a, b in zip(got(), want(), strict=True):
        same(a, b)


@njit
def ignoring(x, y, index):  # type: ignore[no-untyped-def]
    return fastce.cross_entropy(x, y, ignore_index=index, reduction="none")


def test_ignore_index_is_compared_by_value(rng: np.random.Generator) -> None:
    """And a label is shown by its value, also one that only uint64 holds."""
    x, high = cases.normal(rng, (4, 300), np.float64), 2**64 - 100
    for dtype, label, index in (
        *((np.int8, -100, -100), (np.int8, 5, 156)),
        *((np.uint8, 156, -100), (np.uint8, 156, 156)),
        *((np.uint64, high, np.uint64(high)), (np.uint64, 5, -100)),
    ):
        y = np.array([3, label, 5, 7], dtype)
        same(ignoring(x, y, index), fastce.cross_entropy(x, y, ignore_index=index, reduction="none", **C_CORE))
    for dtype, label, index in ((np.int8, -100, 156), (np.uint64, high, -100)):
        y = np.array([3, label, 5, 7], dtype)
        with pytest.raises(IndexError, match=f"target: label {label} at index") as mine:
            ignoring(x, y, index)
        with pytest.raises(IndexError) as theirs:
            fastce.cross_entropy(x, y, ignore_index=index)
        assert str(mine.value) == str(theirs.value)


def test_one_row(rng: np.random.Generator) -> None:
    """Logits of one dimension, whose label is a number."""

    @njit
    def row(x, y):  # type: ignore[no-untyped-def]
        loss, grad = fastce.cross_entropy_with_grad(x, y, sample_weight=0.5, out=x)
        return loss, grad, fastce.logsumexp(x), fastce.cross_entropy(x, 2, reduction="none")

    x = cases.normal(rng, (10,), np.float64)
    mine, theirs = x.copy(), x.copy()
    loss, grad, lse, one = row(mine, 3)
    want = fastce.cross_entropy_with_grad(theirs, 3, sample_weight=0.5, out=theirs)
    same(loss, want.loss)
    same(mine, theirs)
    assert grad.ctypes.data == mine.ctypes.data
    same(lse, fastce.logsumexp(theirs))
    same(one, fastce.cross_entropy(theirs, 2, reduction="none", **C_CORE))


@njit
def into(x, y, out):  # type: ignore[no-untyped-def]
    return fastce.cross_entropy_with_grad(x, y, out=out)


@njit
def into_weighted(x, y, weight, out):  # type: ignore[no-untyped-def]
    return fastce.cross_entropy_with_grad(x, y, weight=weight, out=out)


def test_in_place_and_overlaps(rng: np.random.Generator) -> None:
    x = cases.normal(rng, (6, 10), np.float32)[:, :]
    y = cases.labels(rng, 6, 10)
    room = np.zeros((13, 20), np.float32)
    a, apart = room[:6, ::2], room[6:12, ::2]
    a[...] = x
    want = fastce.cross_entropy_with_grad(x, y, **C_CORE)
    into(a, y, apart)
    same(apart.copy(), want.grad)
    strided = np.lib.stride_tricks.as_strided
    one_row, woven = strided(room[12, ::2], (6, 10), (0, 8)), strided(room[7:, ::2], (6, 10), (8, 12))
    between = room[:6, 1::2]
    into(a, y, between)
    same(between.copy(), want.grad)
    same(a.copy(), x)
    for out in (room[1:7, ::2], one_row, woven, room[:5, ::2]):
        before = room.tobytes()
        with pytest.raises(ValueError, match="out: "):
            into(a, y, out)
        assert room.tobytes() == before
    weights = np.ones(60, np.float32)
    with pytest.raises(ValueError, match="out: overlaps an input"):
        into_weighted(a, y, weights[10:20], weights.reshape(6, 10))
    assert (weights == 1).all()
    y[4] = 10
    with pytest.raises(IndexError, match="at index"):
        into(a, y, a)
    assert room.tobytes() == before
    y[4] = 0
    grad = into(a, y, a).grad
    same(a.copy(), fastce.cross_entropy_with_grad(x, y, **C_CORE).grad)
    assert grad.ctypes.data == a.ctypes.data


BAD_VALUES: list[tuple[dict[str, Any], type[Exception], bool]] = [
    ({"axis": 2}, ValueError, False),
    ({"axis": -3}, ValueError, False),
    ({"weight": np.ones(4)}, ValueError, False),
    ({"weight": np.array([1.0, -1.0, 1.0])}, ValueError, True),
    ({"weight": np.array([1.0, 1.0, np.nan])}, ValueError, True),
    ({"sample_weight": np.ones(3)}, ValueError, False),
    ({"sample_weight": np.array([1.0, 1.0, -2.0, 1.0])}, ValueError, True),
    ({"sample_weight": np.array([1.0, 1.0, 1.0, np.inf])}, ValueError, True),
    ({"label_smoothing": 1.5}, ValueError, True),
    ({"label_smoothing": np.nan}, ValueError, True),
    ({"z_loss": -1.0}, ValueError, True),
    ({"denominator": 0.0}, ValueError, True),
    ({"base": 1.0}, ValueError, True),
    ({"target": np.array([0, 1, 2, 3])}, IndexError, True),
    ({"target": np.array([0, -1, 2, 7])}, IndexError, True),
    ({"target": np.array([0, 1, 2])}, ValueError, False),
    ({"logits": np.zeros((4, 0))}, ValueError, False),
]
"""What is wrong; the error; whether it has the words of Python's."""


@pytest.mark.parametrize(("wrong", "error", "same_words"), BAD_VALUES)
def test_errors(wrong: dict[str, Any], error: type[Exception], same_words: bool) -> None:
    x, y = wrong.get("logits", np.zeros((4, 3))), wrong.get("target", np.array([0, 1, 2, 0]))
    options = {"axis": -1, "weight": np.ones(x.shape[1]), "sample_weight": np.ones(4), "ignore_index": -100}
    options |= {"label_smoothing": 0.0, "z_loss": 0.0, "denominator": 1.0, "base": 2.0}
    options |= {name: value for name, value in wrong.items() if name in options}
    with pytest.raises(error) as mine:
        with_options(x, y, *options.values())
    with pytest.raises(error) as theirs:
        fastce.cross_entropy(x, y, **options, **C_CORE)
    assert str(mine.value).partition(":")[0] == str(theirs.value).partition(":")[0]
    assert not same_words or str(mine.value) == str(theirs.value)
    copy = pickle.loads(pickle.dumps(mine.value))
    assert type(copy) is error
    assert str(copy) == str(mine.value)


def test_a_bad_dense_target_names_its_row() -> None:
    x = np.zeros((2, 3, 4))
    t = np.ones_like(x)
    t[1, 2, 3] = -1
    with pytest.raises(ValueError, match=r"target: expected finite numbers >= 0 .* at index \(1, 2\)"):
        plain(x, t)


X, Y = np.zeros((4, 3)), np.zeros(4, np.int64)

BAD_TYPES: list[tuple[str, Callable[..., Any], tuple[Any, ...], str]] = [
    ("logits", lambda x, y: fastce.cross_entropy(x, y), (np.zeros((4, 3), int), Y), "float32 or float64"),
    ("target", lambda x, y: fastce.cross_entropy(x, y), (X, np.zeros(4)), "integer labels of 1 dimensions"),
    ("target", lambda x, y: fastce.cross_entropy(x, y), (X, np.zeros((4, 3, 1))), "or a dense target of 2"),
    ("reduction", lambda x, y, how: fastce.cross_entropy(x, y, reduction=how), (X, Y, "sum"), "written in the call"),
    ("reduction", lambda x, y: fastce.cross_entropy(x, y, reduction="avg"), (X, Y), "'mean', 'sum' or 'none'"),
    ("denominator", lambda x, y: fastce.cross_entropy(x, y, reduction="sum", denominator=2), (X, Y), "only reduction"),
    ("weight", lambda x, y: fastce.cross_entropy(x, y, weight=2.0), (X, Y), "array of 1 dimension"),
    ("sample_weight", lambda x, y: fastce.cross_entropy(x, y, sample_weight=x), (X, Y), "array of 1 dimensions"),
    ("ignore_index", lambda x, y: fastce.cross_entropy(x, y, ignore_index=1.0), (X, Y), "an integer"),
    ("z_loss", lambda x, y: fastce.cross_entropy(x, y, z_loss=y), (X, Y), "a number"),
    ("backend", lambda x, y: fastce.cross_entropy(x, y, backend="numba"), (X, Y), "'auto' or 'cython'"),
    ("num_threads", lambda x, y: fastce.cross_entropy(x, y, num_threads=2), (X, Y), "the thread they are made on"),
    ("grad_output", lambda x, y: fastce.cross_entropy_with_grad(x, y, grad_output=x), (X, Y), "a number, or None"),
    ("out", lambda x, y: fastce.cross_entropy_with_grad(x, y, out=y), (X, Y), "array of 2 dimensions"),
    ("out", lambda x: fastce.softmax(x, out=x), (np.broadcast_to(X, X.shape),), "writable"),
    ("out", lambda x, y: fastce.logsumexp(x, out=y), (X, np.zeros(4)), "leave it out"),
]


@pytest.mark.parametrize(("name", "function", "arguments", "accepted"), BAD_TYPES)
def test_types_that_are_refused(name: str, function: Any, arguments: tuple[Any, ...], accepted: str) -> None:
    """While compiling, naming the argument and what is accepted."""
    with pytest.raises(TypingError, match=f"{name}: .*{re.escape(accepted)}"):
        njit(function)(*arguments)


def test_inside_prange(rng: np.random.Generator) -> None:
    """Each batch's loss has the bits that it has outside."""

    @njit(parallel=True)
    def batches(x, y, grads):  # type: ignore[no-untyped-def]
        losses = np.empty(len(x))
        for i in prange(len(x)):
            losses[i] = fastce.cross_entropy(x[i], y[i])
            fastce.cross_entropy_with_grad(x[i], y[i], out=grads[i])
        return losses

    x, y = cases.normal(rng, (50, 16, 10), np.float32), cases.labels(rng, (50, 16), 10)
    grads = np.empty_like(x)
    losses = batches(x, y, grads)
    for i in range(50):
        want = fastce.cross_entropy_with_grad(x[i], y[i], **C_CORE)
        same(losses[i], want.loss)
        same(grads[i], want.grad)


# --- registration -----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import numba
assert "fastce" not in sys.modules
import numpy as np
import fastce
if "no core" in sys.argv:
    sys.modules["fastce._core"] = None

@numba.njit(cache=True)
def loss(x, y):
    return fastce.cross_entropy(x, y), fastce.cross_entropy_with_grad(x, y)

x = np.eye(3)
print(loss(x, np.arange(3))[0], sum(loss.stats.cache_hits.values()))
assert (loss.py_func(x, np.arange(3))[1].grad == loss(x, np.arange(3))[1].grad).all()
try:
    loss(x, np.arange(1, 4))
except IndexError as error:
    print(error)
"""


def run(program: Path, *how: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NUMBA_CACHE_DIR": str(program.parent / "cache")} | variables
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(program), *how],
        env=env | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_code_on_disk(tmp_path: Path) -> None:
    """Numba finds fastce by itself; the next process compiles nothing; without the core it gets an error, no crash."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    want = fastce.cross_entropy(np.eye(3), np.arange(3), **C_CORE)
    message = "target: label 3 at index (2,) is out of range for 3 classes"
    for hits in (0, 1):
        done = run(program)
        assert (done.stderr, done.returncode) == ("", 0)
        assert done.stdout == f"{want!r} {hits}\n{message}\n"
    done = run(program, "no core")
    assert done.stderr.splitlines()[-1].endswith(_njit.MESSAGES[_njit.NO_CORE])
    assert done.returncode == 1
    done = run(program, FASTCE_ISA="z80")
    assert "FASTCE_ISA: " in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_the_documented_program(tmp_path: Path) -> None:
    """docs/numba.md: as printed, a file of its own, and the next time from disk."""
    text = (ROOT / "docs" / "numba.md").read_text(encoding="utf-8")
    [source] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [output] = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program = tmp_path / "program.py"
    program.write_text(source, encoding="utf-8")
    for _ in range(2):
        done = run(program)
        assert (done.stderr, done.stdout) == ("", output)


def test_entry_point() -> None:
    """It is in the metadata of what is installed: an editable install before it was added is installed anew."""
    found = importlib.metadata.entry_points(group="numba_extensions")
    assert [point.load() for point in found if point.value.startswith("fastce.")] == [_njit.init]


def test_numba_is_not_imported_with_fastce() -> None:
    program = "import sys, fastce; fastce.cross_entropy([[1.0]], [0]); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_code_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_njit, "VERSION", _njit.VERSION + 1)
    stale = njit(lambda x, y: fastce.cross_entropy(x, y, z_loss=0.5))
    with pytest.raises(ValueError, match="compiled for another version of fastce"):
        stale(X, Y)


def test_numbers_are_those_of_the_core() -> None:
    """Codes, flags, version and dtypes, as the headers have them."""
    header = (ROOT / "src_c" / "binding" / "flat_call.h").read_text()
    codes = re.findall(r"^    FLAT_(\w+)(?: = 0)?,", header.partition("typedef enum flat_code")[2], re.MULTILINE)
    special = {"OK", "BAD_LABEL", "NO_MEMORY"}
    assert codes.index("BAD_LABEL") == _njit.BAD_LABEL
    assert codes.index("NO_MEMORY") == _njit.NO_MEMORY
    numbered = {number for number, code in enumerate(codes) if code not in special}
    assert numbered | {_njit.NO_CORE} == set(_njit.MESSAGES)
    assert len(codes) == _njit.NO_CORE
    for number, code in enumerate(codes):
        if re.fullmatch("BAD_(SMOOTHING|Z_LOSS|DENOMINATOR|BASE|WEIGHT|SAMPLE_WEIGHT|TARGET|AXIS)", code):
            word = code.removeprefix("BAD_").lower().replace("smoothing", "label_smoothing")
            assert _njit.MESSAGES[number].startswith(f"{word}: ")
    values = dict(re.findall(r"FLAT_(\w+) = (\d+)", header))
    assert int(values["VERSION"]) == _njit.VERSION
    for flag in ("UNSIGNED_IGNORE_INDEX", "HAS_DENOMINATOR", "HAS_BASE"):
        assert int(values[flag]) == getattr(_njit, flag)
    dtypes = re.search(r"enum fastce_dtype \{(.*?)\}", (ROOT / "fastce/include/fastce.h").read_text(), re.DOTALL)
    assert dtypes is not None
    names = {types.boolean: "BOOL"} | {getattr(types, f"float{n}"): f"F{n}" for n in (32, 64)}
    names |= {getattr(types, f"{u}int{n}"): f"{u or 'i'}{n}".upper() for u in ("u", "") for n in (8, 16, 32, 64)}
    listed = re.findall(r"FASTCE_(\w+)", dtypes[1])[:-1]
    assert [names.get(t) or listed[i] for i, t in enumerate(_njit.DTYPES)] == listed
    assert sum(t is None for t in _njit.DTYPES) == 2
