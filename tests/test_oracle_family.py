"""The oracle of the family: its longdouble numbers against mpmath's, and both against closed forms."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

import oracle
import oracle_family
from oracle import Wide

RNG = np.random.default_rng(11)
LOGITS = np.concatenate(
    [RNG.standard_normal(30) * 10, [0.0, -0.0, 80, -80, 700, -700, 1e-310, np.inf, -np.inf, np.nan]]
)
PROBS = np.concatenate([RNG.random(30), [0.0, -0.0, 1.0, 1e-310, 1e-20, 2.0**-52, 1 - 2.0**-53, np.nan, -1.0, 2.0]])
YES = (RNG.random(40) < 0.5).astype(float)
SHARE = np.where(RNG.random(40) < 0.3, YES, RNG.random(40))
NEAR = np.abs(PROBS * (1 + 2.0**-40 * RNG.standard_normal(40)))
ROWS = PROBS.reshape(8, 5)
DENSE = np.where(np.isfinite(ROWS) & (ROWS > 0), ROWS, 0.25)
LABELS = np.array([0, 1, 2, 3, 4, -100, 1, 0])
EVERY = {"weight": RNG.random(40), "sample_weight": RNG.random(40).round(1), "base": 2, "reduction": "none"}

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "logits": ("binary_cross_entropy_with_logits", (LOGITS, SHARE), {"reduction": "none"}),
    "logits with options": (
        "binary_cross_entropy_with_logits",
        (LOGITS, SHARE),
        {**EVERY, "pos_weight": RNG.random(40), "label_smoothing": 0.1, "grad_output": RNG.standard_normal(40)},
    ),
    "focal": ("binary_focal_loss_with_logits", (LOGITS, YES), {"reduction": "none"}),
    "focal with options": ("binary_focal_loss_with_logits", (LOGITS, YES), {**EVERY, "gamma": 3.5, "alpha": 0.25}),
    "probabilities": ("binary_cross_entropy", (PROBS, SHARE), {"reduction": "none"}),
    "probabilities with options": (
        "binary_cross_entropy",
        (PROBS, SHARE),
        {**EVERY, "label_smoothing": 0.1, "eps": 1e-3},
    ),
    "squares": ("mse_loss", (LOGITS, SHARE), {"weight": SHARE, "reduction": "none"}),
    "log-probabilities": ("nll_loss", (-LOGITS.reshape(8, 5), LABELS), {"reduction": "none", "label_smoothing": 0.1}),
    "rows": ("categorical_cross_entropy", (ROWS, DENSE), {"reduction": "none", "eps": 1e-3}),
    "rows along the first axis": ("categorical_cross_entropy", (ROWS.T, LABELS), {"axis": 0, "weight": DENSE[0]}),
    "entropy": ("entropy", (DENSE,), {"base": 2}),
    "KL": ("kl_divergence", (DENSE, ROWS), {}),
    "KL of neighbours": ("kl_divergence", (DENSE, NEAR.reshape(8, 5)), {"reduction": "batchmean"}),
    "JS": ("js_divergence", (DENSE, ROWS), {"base": 10}),
    "JS of neighbours": ("js_divergence", (DENSE, NEAR.reshape(8, 5)), {}),
}


@pytest.mark.skipif(not oracle.WIDE_ENOUGH, reason="longdouble is double here, and everything is done by mpmath")
@pytest.mark.parametrize("call", CALLS)
def test_numbers_are_those_of_mpmath(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and slopes to 2^-58, relative to the sizes of what adds up to them; focal costs to their exponent's."""
    name, arrays, options = CALLS[call]
    wide = getattr(oracle_family, name)(*arrays, **options)
    monkeypatch.setattr(oracle, "WIDE_ENOUGH", False)
    monkeypatch.setattr(oracle_family, "DIGITS", 80)
    slow = getattr(oracle_family, name)(*arrays, **options)
    exponents = sum(np.where(np.isfinite(part.exponent), part.exponent, Wide(0)) for part in slow.parts)
    finite = np.where(np.isfinite(slow.sizes), slow.sizes, Wide(0))
    for what in ("loss", "slope", "value", "grad", "scale"):
        a, b = getattr(wide, what), getattr(slow, what)
        with np.errstate(all="ignore"):
            size = np.abs(b)
            if what == "loss":
                size = size * (1 + exponents) if slow.parts else slow.sizes
            elif what == "value":
                size = size * (1 + np.max(exponents)) + finite.max()
            elif slow.parts and what != "scale":
                terms = [np.where(part.coefficient == 0, 0, part.coefficient * part.slope) for part in slow.parts]
                scale = 1 if what == "slope" else np.abs(slow.scale * slow.grad_output)
                size = sum(np.abs(term) for term in terms) * (1 + exponents) * scale
            good = np.where(np.isfinite(b), np.abs(a - b) <= 2.0**-58 * size, (a == b) | np.isnan(a) & np.isnan(b))
            good |= (np.abs(a) < 1e-290) & (np.abs(b) < 1e-290) | (np.abs(a) > 1e300)  # `narrow` goes through double
        assert good.all(), (what, np.argwhere(~good)[:3].tolist(), a[~good][:3], b[~good][:3])


def test_known_values() -> None:
    """Closed forms that need no oracle."""
    with mpmath.workdps(40):
        loss = oracle_family.binary_cross_entropy_with_logits([80.0], [1], reduction="none").value[0]
        assert loss == pytest.approx(oracle.narrow(mpmath.log1p(mpmath.exp(-80))), rel=1e-18)
    assert oracle_family.binary_focal_loss_with_logits([0.0], [1], gamma=3).value == pytest.approx(np.log(Wide(2)) / 8)
    assert oracle_family.mse_loss([1.0, 4.0], [1, 2], sample_weight=[1, 3]).value == 3
    assert oracle_family.entropy(np.full((2, 8), 0.125), base=2).value.tolist() == [3, 3]
    assert oracle_family.kl_divergence([1.0, 0], [0.5, 0.5], base=2).value == 1
    assert oracle_family.js_divergence([1.0, 0], [0, 1.0], base=2).value == 1


@pytest.mark.parametrize("case", [call for call in CALLS if "option" in call or call in ("squares", "rows")])
def test_slopes_are_derivatives(case: str) -> None:
    """By central differences in extended precision."""
    name, (x, t), options = CALLS[case]
    call = getattr(oracle_family, name)
    options = options | {"reduction": "none"}
    answer = call(x, t, **options)
    options.pop("grad_output", None)
    step = 2.0**-14
    safe = np.isfinite(x) & (np.abs(x) < 40) & ((x > 0.01) & (x < 0.99) if "logits" not in name else True)
    for at in np.argwhere(safe)[:20]:
        up, down = x.copy(), x.copy()
        up[tuple(at)] += step
        down[tuple(at)] -= step
        high, low = (call(v, t, **options).value for v in (up, down))
        row = tuple(at)[: high.ndim]
        apart = Wide(up[tuple(at)]) - Wide(down[tuple(at)])
        grad = answer.grad[tuple(at)] / answer.grad_output[row]
        assert float((high[row] - low[row]) / apart) == pytest.approx(float(grad), rel=1e-4, abs=1e-7)
