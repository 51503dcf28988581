"""`fastce score --dask SCHEDULER`: the blocks of a run, computed by the workers of a Dask cluster.

A worker opens the files itself, under the same names, and returns what it has found in a run of blocks: a few numbers,
and the losses where they are wanted. They are added here, in their order, as results of threads are: the same bits. A
worker that is lost loses its blocks of the moment, which the scheduler gives to another.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

from fastce._cli._console import CommandError
from fastce._cli._work import Block, Found, Job

TASK_BYTES = 128 << 20
"""What a worker does before it reports: long enough for what a task costs, and for formats that are read in order."""

PATIENCE = "10s"
"""How long to wait for a scheduler."""

FILES = ("logits", "target", "weight")

DECIDES = (*FILES, "axis", "ignore_index", "label_smoothing", "base", "dtype", "threads")
"""The options that a worker needs."""


class Cluster:
    """The workers behind a scheduler."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.num_threads = max(1, sum(client.nthreads().values()))

    def found(
        self, options: argparse.Namespace, job: Job, first_row: int, with_values: bool
    ) -> Generator[Found, None, None]:
        """Do block after block, as `Job.found`."""
        asked = {name: getattr(options, name) for name in DECIDES}
        for name in FILES:
            if asked[name] is not None:
                asked[name] = os.path.join(os.getcwd(), asked[name])  # noqa: PTH109, PTH118 (FILE:TENSOR is no path)
        asked["backend"], variant = job.chosen.name, job.variant
        text = json.dumps(asked)
        waiting: deque[Any] = deque()
        blocks = (block for block in job.blocks() if block.row >= first_row)
        try:
            for task in _tasks(blocks, max(1, TASK_BYTES // job.block_bytes)):
                waiting.append(self._client.submit(do, text, variant, task, with_values, pure=False))
                if len(waiting) > 2 * self.num_threads:
                    yield from self._result(waiting.popleft())
            while waiting:
                yield from self._result(waiting.popleft())
        finally:
            self._client.cancel(list(waiting))

    def _result(self, future: Any) -> list[Found]:
        from distributed import KilledWorker

        try:
            found: list[Found] = future.result()
        except (KilledWorker, ImportError) as error:
            raise CommandError(f"--dask: {error}") from None
        return found


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler."""
    try:
        from distributed import Client
    except ImportError:
        raise CommandError('--dask needs distributed: pip install "dask[distributed]"') from None
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"--dask {address}: no scheduler answers: {error}") from None
    with client:
        yield Cluster(client)


def do(asked: str, variant: str, task: list[Block], with_values: bool) -> list[Found]:
    """On a worker: what it finds in some blocks."""
    job = _job(asked)
    if job.variant != variant:
        raise CommandError(f"--dask: a worker has {job.variant} where the others have {variant}: see FASTCE_ISA")
    found = job.do_all(task, job.chosen.num_threads)
    return found if with_values else [block._replace(values=block.values[:0]) for block in found]


@lru_cache(maxsize=2)
def _job(asked: str) -> Job:
    """The job as a worker sees it: its files stay open from task to task."""
    from fastce._cli._score import prepare

    options = argparse.Namespace(**json.loads(asked))
    threads = options.threads or 1  # a worker runs as many tasks as it has threads
    job, _ = prepare(options)
    return replace(job, chosen=job.chosen._replace(num_threads=threads))


def _tasks(blocks: Iterator[Block], count: int) -> Iterator[list[Block]]:
    while task := list(islice(blocks, count)):
        yield task
