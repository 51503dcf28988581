"""Who computes: every backend of fastce in every variant, and the other systems, each as its users call it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastce
from accuracy.cases import Case, FamilyCase
from fastce import _backends, _settings

Array = npt.NDArray[Any]


class System(NamedTuple):
    """One column of the table. Losses are those of the rows, a gradient that of their sum."""

    name: str
    loss_and_grad: Callable[[Case], tuple[Array, Array]]
    softmax: Callable[[Array], Array]
    log_softmax: Callable[[Array], Array]
    logsumexp: Callable[[Array], Array]
    family: Callable[[FamilyCase], dict[str, Array]] | None = None
    """Losses beside cross entropy: "loss", and "grad" where there is one."""
    halves: bool = False
    """Whether float16 and bfloat16 are computed in float32 and the loss is returned so."""
    staged: bool = False
    """Whether it has temperatures, softcaps and sparse targets."""
    mean: Callable[[Array, Array], tuple[float, Array]] | None = None
    """The mean loss, and the losses it is the mean of, of logits that are broadcast over their first axis."""


def systems() -> list[System]:
    """Return what can run here, ours first."""
    found = []
    for backend in fastce.available_backends():
        variants = _backends.load(backend).variants()
        # The variants of the other two differ in their threads only.
        found += [_fastce(backend, variant) for variant in (variants if backend == "cython" else variants[:1])]
    peers = (("SciPy", ["scipy"], _scipy), ("torch", ["torch"], _torch), ("JAX", ["jax", "optax"], _jax))
    return found + [make(name) for name, needs, make in peers if all(find_spec(module) for module in needs)]


def _fastce(backend: str, variant: str) -> System:
    def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with _settings.use_variant(variant):
            return function(*args, backend=backend, **options)

    def loss_and_grad(case: Case) -> tuple[Array, Array]:
        # A gradient in the dtype of the arithmetic, so that it is not the rounding to halves that is seen.
        out = np.empty(case.logits.shape, np.float64 if case.dtype == "float64" else np.float32)
        options = case.arguments | {"out": out, "reduction": "none"}
        loss, grad = call(fastce.cross_entropy_with_grad, case.logits, **options)
        return loss, grad

    def family(case: FamilyCase) -> dict[str, Array]:
        if case.function == "row_statistics":
            told = call(fastce.row_statistics, *case.arrays)
            return {name: getattr(told, name) for name in ("lse", "loss", "entropy", "target_probability")}
        if case.function == "log_loss":
            p, y = case.arrays  # type: ignore[misc]
            of_row = {"labels": np.arange(p.shape[1]), "normalize": False}
            rows = [call(fastce.log_loss, y[i : i + 1], p[i : i + 1], **of_row) for i in range(len(p))]
            return {"loss": np.array(rows)}
        if not case.has_gradient:
            options = {} if case.function == "entropy" else {"reduction": "none"}
            return {"loss": call(getattr(fastce, case.function), *case.arrays, **options)}
        function = getattr(fastce, f"{case.function}_with_grad")
        own = {
            "distillation_loss": {"temperature": case.temperature},
            "focal_loss": {"gamma": case.gamma},
        }.get(case.function, {})
        loss, grad = call(function, *case.arrays, reduction="none", **own)
        return {"loss": loss, "grad": grad}

    def mean(logits: Array, labels: Array) -> tuple[float, Array]:
        some = call(fastce.cross_entropy, logits[0], labels[0], reduction="none")
        return call(fastce.cross_entropy, logits, labels), some

    return System(
        f"cython {variant}" if backend == "cython" else backend,
        loss_and_grad,
        functools.partial(call, fastce.softmax),
        functools.partial(call, fastce.log_softmax),
        functools.partial(call, fastce.logsumexp),
        family=family,
        halves=True,
        staged=True,
        mean=mean,
    )


def _scipy(name: str) -> System:
    from scipy import special

    def loss_and_grad(case: Case) -> tuple[Array, Array]:
        q = _measure(case)
        log_p = special.log_softmax(case.logits, axis=-1)
        rows = np.arange(len(log_p))
        losses = -log_p[rows, case.target] if case.labelled else -np.where(q > 0, q * log_p, 0).sum(-1)
        return losses, special.softmax(case.logits, axis=-1) - q

    def family(case: FamilyCase) -> dict[str, Array]:
        if case.function == "entropy":
            return {"loss": special.entr(case.arrays[0]).sum(-1)}
        if case.function == "kl_divergence":
            return {"loss": special.rel_entr(*case.arrays).sum(-1)}
        return {}

    def mean(logits: Array, labels: Array) -> tuple[float, Array]:
        def losses(x: Array, y: Array) -> Array:
            log_p = special.log_softmax(x, axis=-1)
            found: Array = -np.take_along_axis(log_p, y[..., None], -1)[..., 0]
            return found

        return float(losses(logits, labels).mean()), losses(logits[0], labels[0])

    return System(
        name,
        loss_and_grad,
        functools.partial(special.softmax, axis=-1),
        functools.partial(special.log_softmax, axis=-1),
        functools.partial(special.logsumexp, axis=-1),
        family=family,
        mean=mean,
    )


def _torch(name: str) -> System:
    import torch

    def loss_and_grad(case: Case) -> tuple[Array, Array]:
        x = torch.from_numpy(case.logits).requires_grad_()
        losses = torch.nn.functional.cross_entropy(
            x, torch.from_numpy(case.target), reduction="none", label_smoothing=case.label_smoothing
        )
        (grad,) = torch.autograd.grad(losses.sum(), x)
        return losses.detach().numpy(), grad.numpy()

    def over_classes(function: Any) -> Callable[[Array], Array]:
        return lambda x: function(torch.from_numpy(x), dim=-1).numpy()

    of = torch.nn.functional
    functions: dict[str, Callable[..., Any]] = {
        "binary_cross_entropy_with_logits": of.binary_cross_entropy_with_logits,
        "binary_cross_entropy": of.binary_cross_entropy,
        "mse_loss": of.mse_loss,
        "nll_loss": of.nll_loss,
    }

    def family(case: FamilyCase) -> dict[str, Array]:
        if case.function not in functions or (case.function == "nll_loss" and case.arrays[-1].ndim == 2):
            return {}
        x = torch.from_numpy(case.arrays[0]).requires_grad_()
        target = torch.from_numpy(case.arrays[-1])
        losses = functions[case.function](x, target if case.function == "nll_loss" else target.to(x), reduction="none")
        (grad,) = torch.autograd.grad(losses.sum(), x)
        return {"loss": losses.detach().numpy(), "grad": grad.numpy()}

    def mean(logits: Array, labels: Array) -> tuple[float, Array]:
        n_classes = logits.shape[-1]
        x, y = torch.from_numpy(logits.reshape(-1, n_classes)), torch.from_numpy(labels.reshape(-1))
        some = of.cross_entropy(x[: len(logits[0])], y[: len(logits[0])], reduction="none").numpy()
        return float(of.cross_entropy(x, y)), some

    return System(
        name,
        loss_and_grad,
        over_classes(torch.softmax),
        over_classes(torch.log_softmax),
        over_classes(torch.logsumexp),
        family=family,
        mean=mean,
    )


def _jax(name: str) -> System:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)

    def loss_and_grad(case: Case) -> tuple[Array, Array]:
        q = _measure(case)

        def losses_of(x: Any) -> Any:
            if case.labelled:
                return optax.softmax_cross_entropy_with_integer_labels(x, case.target)
            return optax.softmax_cross_entropy(x, q)

        losses, pull = jax.vjp(losses_of, jax.numpy.asarray(case.logits))
        return np.asarray(losses), np.asarray(pull(jax.numpy.ones_like(losses))[0])

    def over_classes(function: Any) -> Callable[[Array], Array]:
        return lambda x: np.asarray(function(jax.numpy.asarray(x), axis=-1))

    functions: dict[str, Callable[..., Any]] = {
        "binary_cross_entropy_with_logits": optax.sigmoid_binary_cross_entropy,
        "mse_loss": optax.squared_error,
    }

    def family(case: FamilyCase) -> dict[str, Array]:
        if case.function not in functions:
            return {}
        target = case.arrays[-1].astype(case.arrays[0].dtype)
        losses, pull = jax.vjp(lambda x: functions[case.function](x, target), jax.numpy.asarray(case.arrays[0]))
        return {"loss": np.asarray(losses), "grad": np.asarray(pull(jax.numpy.ones_like(losses))[0])}

    def mean(logits: Array, labels: Array) -> tuple[float, Array]:
        losses_of = optax.softmax_cross_entropy_with_integer_labels
        return float(losses_of(logits, labels).mean()), np.asarray(losses_of(logits[0], labels[0]))

    return System(
        name,
        loss_and_grad,
        over_classes(jax.nn.softmax),
        over_classes(jax.nn.log_softmax),
        over_classes(jax.nn.logsumexp),
        family=family,
        mean=mean,
    )


def _measure(case: Case) -> Array:
    """Return q as those write it who have no labels or no smoothing."""
    n_classes = case.logits.shape[1]
    t = case.target if case.target.ndim == 2 else np.arange(n_classes) == case.target[:, None]
    q: Array = ((1 - case.label_smoothing) * t + case.label_smoothing / n_classes).astype(case.logits.dtype)
    return q
