"""The set of backends, variants and dtypes that runs is the one written in matrix.py: none is skipped, none is lost."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

import fastce
from fastce import _backends, _dtypes, _settings
from matrix import DTYPES, ENGINES, NEEDS, VARIANTS, Engine, expected_isas


def test_backends_are_those_expected() -> None:
    assert list(_backends.NAMES) == ["cython", "numba", "numpy"] == list(VARIANTS)
    assert list(fastce.available_backends()) == ["cython", "numba", "numpy"]


@pytest.mark.parametrize("backend", VARIANTS)
def test_variants_are_those_expected(backend: str) -> None:
    """What the backend says it can be forced to, best first, against what this CPU's flags say."""
    assert list(_backends.load(backend).variants()) == VARIANTS[backend]


def test_this_machine_has_the_isas_its_kind_must_have() -> None:
    expected = {"x86_64": {"portable", "avx2", "avx512"}, "aarch64": {"portable", "neon"}}
    assert set(expected_isas()) <= expected.get(platform.machine(), {"portable", "neon"})
    assert expected_isas()[-1] == "portable"


def test_the_features_of_the_processor_are_named() -> None:
    """Those that the expected ISAs need, and no other, by show_config."""
    found = set(fastce.show_config("dicts")["backends"]["cython"]["cpu_features"])
    for isa, needed in NEEDS.items():
        assert (isa in expected_isas()) == (needed <= found)


def test_dtypes_are_those_expected() -> None:
    assert [dtype.name for dtype in DTYPES] == ["float16", "bfloat16", "float32", "float64"]
    assert sorted(_dtypes.LOGITS) == sorted(dtype.name for dtype in DTYPES)


def test_a_forced_variant_runs(engine: Engine, dtype: np.dtype[Any]) -> None:
    """`explain` names the backend and the variant that was forced, for every dtype."""
    plan = engine.explain(np.zeros((2, 3), dtype), [0, 1])
    assert (plan.backend, plan.variant) == (engine.backend, engine.variant)
    assert engine.variant in str(plan)


def test_the_best_variant_is_the_default() -> None:
    for backend, variants in VARIANTS.items():
        plan = fastce.explain(np.zeros((2000, 300), np.float32), np.zeros(2000, int), backend=backend)
        assert plan.variant == variants[0]


def test_an_unknown_variant_is_an_error(compiled: Engine) -> None:
    """No compiled backend falls back to another variant than the one that is forced."""
    with _settings.use_variant("sse9"), pytest.raises((ValueError, RuntimeError)):
        fastce.cross_entropy([[0.0, 1.0]], [0], backend=compiled.backend)


def test_variants_are_different_code(rng: np.random.Generator) -> None:
    """ISAs differ in the last bits of some sums: if none ever did, one and the same code would be running for all."""
    x = (rng.standard_normal((500, 997)) * 3).astype(np.float32)
    y = rng.integers(0, 997, 500)
    engines = [engine for engine in ENGINES if engine.backend == "cython"]
    losses = [engine.cross_entropy(x, y, reduction="none").tobytes() for engine in engines]
    assert len(set(losses)) == len(engines)


def test_contract_tests_run_on_the_whole_matrix(request: pytest.FixtureRequest) -> None:
    """Each collected test that has an engine has all of them, and a dtype likewise.

    Exempt are tests that list engines of their own, and runs of a selection.
    """
    seen: dict[str, set[tuple[str, str]]] = {}
    for item in request.session.items:
        own = any("engine" in marker.args[0] for marker in item.iter_markers("parametrize"))
        if isinstance(item, pytest.Function) and {"engine", "dtype"} <= set(item.fixturenames) and not own:
            params = item.callspec.params
            seen.setdefault(item.nodeid.partition("[")[0], set()).add((str(params["engine"]), str(params["dtype"])))
    everything = {(str(engine), str(dtype)) for engine in ENGINES for dtype in DTYPES}
    if not request.config.option.keyword and not any("[" in arg for arg in request.config.args):
        assert {name for name, params in seen.items() if params != everything} == set()
