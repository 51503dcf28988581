"""Fixtures of the whole suite: `engine` and `dtype` make a test run for every backend, variant and dtype."""

from __future__ import annotations

import signal
from typing import Any

import hypothesis
import numpy as np
import pytest

from matrix import COMPILED, DTYPES, ENGINES, Engine

# The same examples in every run: a failure seen once is seen again, and engines are given the same work.
# An engine is a frozen record, so a function-scoped fixture of it is the same for every example.
COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("suite", derandomize=True, max_examples=15, **COMMON)
hypothesis.settings.register_profile("long", max_examples=300, **COMMON)
hypothesis.settings.load_profile("suite")

# What a shell runs in the background ignores interrupts, and so would the processes of the tests that send some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=ENGINES, ids=str)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=COMPILED, ids=str)
def compiled(request: pytest.FixtureRequest) -> Engine:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240613)
