"""Documentation is tested: every public name has a docstring in the same order, and its examples run."""

from __future__ import annotations

import doctest
import inspect
import re

import numpy as np
import pytest

import fastce

FUNCTIONS = [name for name in fastce.__all__ if inspect.isfunction(getattr(fastce, name))]

LOSSES = [
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_focal_loss_with_logits",
    "binary_cross_entropy",
    "mse_loss",
    "nll_loss",
    "categorical_cross_entropy",
]
"""Those that have a twin with the gradient."""


def sections(name: str) -> list[str]:
    return re.findall(r"^(\w[\w ]*)\n-{3,}$", inspect.getdoc(getattr(fastce, name)) or "", re.MULTILINE)


def test_public_names() -> None:
    """Those of the interface, all of them and no others."""
    assert set(fastce.__all__) >= {
        "cross_entropy",
        "cross_entropy_with_grad",
        "softmax",
        "log_softmax",
        "logsumexp",
        "available_backends",
        "explain",
        "use_backend",
        "show_config",
        "BackendUnavailableError",
        *(f"{name}{twin}" for name in LOSSES for twin in ("", "_with_grad")),
        "entropy",
        "kl_divergence",
        "js_divergence",
        "log_loss",
    }
    visible = {
        name for name in vars(fastce) if not name.startswith("_") and not inspect.ismodule(getattr(fastce, name))
    }
    assert visible - {"annotations"} == set(fastce.__all__)
    assert fastce.__all__ == sorted(fastce.__all__)


@pytest.mark.parametrize("name", fastce.__all__)
def test_every_public_name_has_examples_that_run(name: str) -> None:
    thing = getattr(fastce, name)
    assert "Examples" in sections(name), f"{name} has no Examples"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, globs={"fastce": fastce, "np": np})
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        text: list[str] = []
        result = runner.run(test, out=text.append)
        assert result.failed == 0, "".join(text)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_documented(name: str) -> None:
    """In the order of the signature, in a section of numpydoc's, and Returns after it."""
    documentation = inspect.getdoc(getattr(fastce, name)) or ""
    parameters = list(inspect.signature(getattr(fastce, name)).parameters)
    if parameters:
        body = documentation.split("Parameters\n----------\n")[1].split("\n\n")
        block = "\n\n".join(body)
        named = [
            n.strip("* ")
            for line in re.findall(r"^(\*{0,2}\w[\w, *]*)(?: :|$)", block, re.MULTILINE)
            for n in line.split(",")
        ]
        assert [n for n in named if n in parameters][: len(parameters)] == parameters
    assert "Returns" in sections(name)


def test_losses_are_documented_completely() -> None:
    """Formula, shapes, units, NaN and infinities, ignored rows, errors, accuracy, source."""
    first = (inspect.getdoc(fastce.cross_entropy) or "").lower()
    for word in ("math::", "nats", "(c,)", "nan", "-inf", "ignored", "ulp", "float32", "accuracy", "warning"):
        assert word in first, word
    assert {"Raises", "Notes", "References"} <= set(sections("cross_entropy"))
    second = (inspect.getdoc(fastce.cross_entropy_with_grad) or "").lower()
    for word in ("math::", "nan", "-inf", "ignored", "ulp", "float16", "grad_output", "in place"):
        assert word in second, word
    assert {"Raises", "Notes"} <= set(sections("cross_entropy_with_grad"))


@pytest.mark.parametrize("name", LOSSES)
def test_twins_have_the_arguments_of_their_losses(name: str) -> None:
    """And grad_output and out beside them."""
    both = [set(inspect.signature(getattr(fastce, name + twin)).parameters) for twin in ("", "_with_grad")]
    assert both[1] - both[0] == {"grad_output", "out"}
    assert not both[0] - both[1]


def test_signatures() -> None:
    """The interface: names, order and defaults; `backend` and `num_threads` last wherever something is computed."""
    loss = (
        "(logits, target, *, axis=-1, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, "
        "z_loss=0.0, temperature=None, softcap=None, spread_missing=False, reduction='mean', denominator=None, "
        "base=None, {}backend='auto', num_threads=None)"
    )
    maps = "(logits, *, axis=-1, out=None, backend='auto', num_threads=None)"
    twins = {"": "", "_with_grad": "grad_output=None, out=None, "}
    scales = "reduction='mean', denominator=None, base=None, {}backend='auto', num_threads=None)"
    rows = "target, *, axis=-1, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, "
    family = {
        "binary_cross_entropy_with_logits": "(logits, target, *, weight=None, pos_weight=None, sample_weight=None, "
        f"label_smoothing=0.0, {scales}",
        "binary_focal_loss_with_logits": "(logits, target, *, gamma=2.0, alpha=None, weight=None, sample_weight=None, "
        f"{scales}",
        "binary_cross_entropy": "(probs, target, *, weight=None, sample_weight=None, label_smoothing=0.0, eps=0.0, "
        f"{scales}",
        "mse_loss": f"(prediction, target, *, weight=None, sample_weight=None, {scales.replace('base=None, ', '')}",
        "nll_loss": f"(log_probs, {rows}{scales}",
        "categorical_cross_entropy": f"(probs, {rows}eps=0.0, {scales}",
    }
    pair = "(p, q, *, axis=-1, base=None, reduction='none', backend='auto', num_threads=None)"
    expected = {
        "cross_entropy": loss.format(""),
        "cross_entropy_with_grad": loss.format("grad_output=None, out=None, "),
        **{name + twin: text.format(more) for name, text in family.items() for twin, more in twins.items()},
        "entropy": "(p, *, axis=-1, base=None, backend='auto', num_threads=None)",
        "kl_divergence": pair,
        "js_divergence": pair,
        "log_loss": (
            "(y_true, y_pred, *, normalize=True, sample_weight=None, labels=None, from_logits=False, "
            "backend='auto', num_threads=None)"
        ),
        "softmax": maps,
        "log_softmax": maps,
        "logsumexp": maps,
        "use_backend": "(name, num_threads=None)",
        "show_config": "(mode='stdout')",
        "available_backends": "()",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(fastce, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == text, name
