"""`fastce score --dask`: the same bits from a cluster of processes, one of which is killed; and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastce._cli import _cluster, _work, main

distributed = pytest.importorskip("distributed")

N, C = 3000, 13
COMMAND = ["score", "x.npy", "y.npy", "--label-smoothing", "0.1", "--json"]
TIMES = ("seconds", "logits_per_second", "gb_per_second", "threads", "output")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two processes of one thread each."""
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "30s", "distributed.scheduler.allowed-failures": 10}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit="1GiB",
            dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Many small blocks, a few a task."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", 10 * C * 4)
    monkeypatch.setattr(_cluster, "TASK_BYTES", 20 * C * 4)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", (rng.standard_normal((N, C)) * np.exp(rng.normal(0, 4, (N, 1)))).astype(np.float32))
    y = rng.integers(0, C, N)
    y[::7] = -100
    np.save("y.npy", y)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main([*COMMAND, *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {name: value for name, value in found.items() if name not in TIMES}


def test_a_worker_is_killed(client: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result of one machine, loss by loss, with a worker lost on the way."""
    expected = run(capsys, "--output", "here.npy")
    [victim, _] = client.run(os.getpid).values()
    at: list[int] = []

    def kill() -> None:
        while not Path("state").exists() or not (rows := json.loads(Path("state").read_text())["result"]["counts"][0]):
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        at.append(rows)

    killer = threading.Thread(target=kill)
    killer.start()
    options = ["--dask", client.scheduler.address, "--resume", "state", "--output", "there.npy"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastce._cli._resume.SAVE_SECONDS", 0.0)
        assert run(capsys, *options) == expected
    killer.join()
    assert 0 < at[0] < N
    assert Path("there.npy").read_bytes() == Path("here.npy").read_bytes()
    client.wait_for_workers(2, timeout=60)


def test_threads_are_those_of_the_cluster(client: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--dask", client.scheduler.address]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == 2


def test_what_can_go_wrong(client: Any, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A bad label, with its place in the whole; no scheduler; another instruction set; a package that is missing."""
    y = np.load("y.npy")
    y[2345] = C

    def refused(address: str) -> str:
        assert main([*COMMAND, "--dask", address, "--output", "z.npy"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert not Path("z.npy").exists()
        return err

    good = Path("y.npy").read_bytes()
    np.save("y.npy", y)
    assert f"label {C} at index (2345,) is out of range" in refused(client.scheduler.address)
    Path("y.npy").write_bytes(good)
    monkeypatch.setattr(_cluster, "PATIENCE", "1s")
    assert "--dask tcp://127.0.0.1:9: no scheduler answers" in refused("tcp://127.0.0.1:9")
    assert "--dask nonsense://: no scheduler answers" in refused("nonsense://")
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert '--dask needs distributed: pip install "dask[distributed]"' in refused("tcp://127.0.0.1:9")
