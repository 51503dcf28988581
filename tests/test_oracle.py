"""The oracle itself: its longdouble rows against mpmath, and what both say against numbers from elsewhere."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
import pytest

import oracle
from oracle import Wide

ROWS = {
    "normal": lambda rng: rng.standard_normal((6, 9)) * 5,
    "one class": lambda rng: rng.standard_normal((4, 1)),
    "wide": lambda rng: rng.standard_normal((2, 700)) * 100,
    "ties": lambda rng: rng.integers(0, 2, (6, 5)).astype(float),
    "confident": lambda rng: np.array([[80.0, 0, 1], [0, 700, 1], [0, 2, -1e300], [0.3, 37.7, 0]]),
    "excluded": lambda rng: np.where(rng.random((6, 9)) < 0.4, -np.inf, rng.standard_normal((6, 9))),
    "far from zero": lambda rng: rng.standard_normal((4, 5)) + 1e16,
    "special": lambda rng: np.array([[0, np.nan, 1], [0, np.inf, 1], [-np.inf] * 3, [0, 1, -np.inf]]),
}


@pytest.mark.skipif(not oracle.WIDE_ENOUGH, reason="longdouble is double here, and every row is done by mpmath")
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("target", ["label", "dense", "nothing"])
def test_rows_are_those_of_mpmath(kind: str, z_loss: float, target: str) -> None:
    rng = np.random.default_rng(5)
    x = ROWS[kind](rng)
    n, n_classes = x.shape
    q = {
        "label": np.eye(n_classes)[x.argmax(-1) if kind == "confident" else rng.integers(0, n_classes, n)],
        "dense": rng.random(x.shape) * (rng.random(x.shape) < 0.6),
        "nothing": np.zeros(x.shape),
    }[target]
    ignored = np.arange(n) == 1
    z = np.where(ignored, 0, z_loss)
    q = np.where(ignored[:, None], 0, q)
    got = oracle.compute_rows(x, q, z, ignored)
    for i in range(n):
        exact = oracle.exact_row(oracle.widen(x[i]), oracle.widen(q[i]), Wide(z[i]), bool(ignored[i]))
        top = float(abs(exact["lse"])) if np.isfinite(float(exact["lse"])) else 1.0
        # The allowed absolute error of what a z-loss or a mixed target makes cancel; nothing else may cancel.
        slack = {"loss": z_loss * top**2, "grad": float(exact["mass"]) + 2 * z_loss * top, "lse": top}
        for name in ("loss", "p", "log_p", "grad", "lse"):
            a, e = np.atleast_1d(getattr(got, name)[i]), np.atleast_1d(np.array(exact[name], object))
            one_hot = target == "label" and z_loss == 0
            free = 0.0 if name == "grad" and one_hot else slack.get(name, 0.0)
            for mine, theirs in zip(a, e, strict=True):
                want = oracle.narrow(theirs)
                if name == "lse" and kind == "special" and not np.isfinite(float(theirs)):
                    continue
                if not np.isfinite(want):
                    assert (np.isnan(mine) and np.isnan(want)) or mine == want, name
                else:
                    assert abs(mine - want) <= 2.0**-61 * (abs(want) + free), (name, mine, want)


def test_wide_sum_is_exact_where_a_plain_sum_is_not() -> None:
    a = np.array([1.0, 2.0**-63, 2.0**-63, -1.0] * 8 + [0.0], Wide)
    assert oracle.wide_sum(a) == 16 * Wide(2) ** -63


def test_known_values() -> None:
    """Closed forms that need no oracle."""
    answer = oracle.cross_entropy([[80.0, 0.0]], [0], reduction="none")
    with mpmath.workdps(80):
        assert answer.value[0] == pytest.approx(oracle.narrow(mpmath.log1p(mpmath.exp(-80))), rel=1e-18)
    uniform = oracle.cross_entropy(np.zeros((3, 4)), [0, 1, 2], base=2)
    assert float(uniform.value) == 2.0
    np.testing.assert_allclose(uniform.grad[0].astype(float) * np.log(2) * 3, [-0.75, 0.25, 0.25, 0.25])


def test_gradient_is_the_derivative_of_the_value() -> None:
    """By central differences in extended precision, with every option at once."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 4))
    options = {"weight": rng.random(4), "sample_weight": rng.random(3)}
    options |= {"label_smoothing": 0.2, "z_loss": 0.1, "base": 3}
    labels = np.array([1, 0, 3])
    for reduction in ("mean", "sum"):
        answer = oracle.cross_entropy(x, labels, reduction=reduction, **options)
        step = 2.0**-12
        for at in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[at] += step
            down[at] -= step
            high, low = (oracle.cross_entropy(v, labels, reduction=reduction, **options).value for v in (up, down))
            assert float((high - low) / (2 * Wide(step))) == pytest.approx(float(answer.grad[at]), rel=1e-6, abs=1e-7)


def test_mpmath_path_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What machines without a wide longdouble use."""
    rng = np.random.default_rng(8)
    x, labels = rng.standard_normal((4, 6)), rng.integers(0, 6, 4)
    x[2, 3], x[3] = -np.inf, np.nan
    wide = oracle.cross_entropy(x, labels, z_loss=0.1, reduction="none")
    monkeypatch.setattr(oracle, "WIDE_ENOUGH", False)
    slow = oracle.cross_entropy(x, labels, z_loss=0.1, reduction="none")
    for field in dataclasses.fields(oracle.Rows):
        if field.name in ("m", "r", "temperature", "softcap", "slope"):
            continue
        a, b = getattr(wide.rows, field.name)[:3], getattr(slow.rows, field.name)[:3]
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-15, atol=1e-16, err_msg=field.name)
    assert np.isnan(slow.value[3])
    assert np.isnan(slow.grad[3]).all()
