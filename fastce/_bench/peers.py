"""The other systems, each as its own users would call it, with no conversion in what is timed.

They get the same arrays and the same number of threads. Where a system leaves a part of the job to its user (a mean
of losses, 1/N on a gradient), what is timed includes it only where it is a visit of every logit.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastce._bench.cases import LABEL_SMOOTHING, Case, Inputs, available_threads
from fastce._bench.family import GAMMA, TEMPERATURE, Array
from fastce._bench.reference import Answer
from fastce._bench.system import Call, System

WIDE = ("float32", "float64")
NOT_TORCH = {"z_loss", "temperature", "softcap", "sparse"}
"""Options that its cross entropy has not."""


def scipy_call(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain or case.dtype not in WIDE:  # it works in the dtype it is given, which is wrong by percents
        return None
    from scipy.special import log_softmax

    rows, labels = np.arange(case.n_rows), arrays.target.reshape(-1)
    logits = arrays.logits.reshape(-1, case.n_classes)

    def loss() -> tuple[Any, Array]:
        log_p = log_softmax(logits, axis=-1)
        return -log_p[rows, labels].mean(), log_p

    def loss_and_grad() -> tuple[Any, Array]:
        value, grad = loss()
        np.exp(grad, out=grad)
        grad[rows, labels] -= 1
        grad /= case.n_rows
        return value, grad

    return Call(loss_and_grad if case.gradient else loss, functools.partial(_read, case))


def numexpr_call(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain or case.dtype not in WIDE:
        return None
    import numexpr

    numexpr.set_num_threads(case.threads)
    rows, labels = np.arange(case.n_rows), arrays.target.reshape(-1)
    x = arrays.logits.reshape(-1, case.n_classes)
    out = None if arrays.out is None else arrays.out.reshape(x.shape)

    def forward() -> tuple[Any, Any, Any]:
        m = x.max(axis=1, keepdims=True)
        sums = numexpr.evaluate("sum(exp(x - m), axis=1)", local_dict={"x": x, "m": m})
        return (np.log(sums) + m[:, 0] - x[rows, labels]).mean(), m, sums

    def loss_and_grad() -> tuple[Any, Array]:
        value, m, sums = forward()
        scale = (1 / (sums * case.n_rows)).astype(x.dtype)[:, None]
        grad = numexpr.evaluate("exp(x - m) * scale", local_dict={"x": x, "m": m, "scale": scale}, out=out)
        grad[rows, labels] -= 1 / case.n_rows
        return value, grad

    return Call(loss_and_grad if case.gradient else forward, functools.partial(_read, case))


def sklearn_call(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain or case.dtype not in WIDE:
        return None
    from sklearn._loss import HalfMultinomialLoss

    x = arrays.logits.reshape(-1, case.n_classes)
    labels = arrays.target.reshape(-1).astype(x.dtype)
    loss = HalfMultinomialLoss(n_classes=case.n_classes)
    losses = np.empty(case.n_rows, x.dtype)
    if not case.gradient:

        def forward() -> tuple[Any, None]:
            loss.loss(y_true=labels, raw_prediction=x, loss_out=losses, n_threads=case.threads)
            return losses.mean(), None

        return Call(forward, functools.partial(_read, case))
    grad = np.empty_like(x) if arrays.out is None else arrays.out.reshape(x.shape)

    def loss_and_grad() -> tuple[Any, Array]:
        fresh = np.empty_like(x) if arrays.out is None else grad
        loss.loss_gradient(y_true=labels, raw_prediction=x, loss_out=losses, gradient_out=fresh, n_threads=case.threads)
        return losses.mean(), fresh

    # Its gradient is that of each row's own loss: 1/N is left to the reader, in its favour.
    return Call(loss_and_grad, lambda result: _read(case, (result[0], result[1] / np.float32(case.n_rows))))


def torch_call(case: Case, arrays: Inputs, *, compiled: bool = False) -> Call | None:
    if not NOT_TORCH.isdisjoint(case.options) or case.axis not in (-1, 1):
        return None
    import torch

    torch.set_num_threads(case.threads)
    if case.function != "cross_entropy":
        return _torch_relative(case, arrays, compiled)
    x = _torch_tensor(arrays.logits)
    target = _torch_tensor(arrays.target)
    weight = None if arrays.weight is None else torch.from_numpy(arrays.weight).to(x.dtype)
    sample_weight = None if arrays.sample_weight is None else torch.from_numpy(arrays.sample_weight).to(x.dtype)
    if case.axis == -1:  # torch has the classes second, whatever follows
        x = x.reshape(-1, case.n_classes)
        target = target.reshape(-1, case.n_classes) if "dense" in case.options else target.reshape(-1)
    smoothing = LABEL_SMOOTHING if "label_smoothing" in case.options else 0.0
    cross_entropy = functools.partial(torch.nn.functional.cross_entropy, weight=weight, label_smoothing=smoothing)

    def loss_of(logits: Any, target: Any) -> Any:
        if sample_weight is None:
            return cross_entropy(logits, target)
        scale = sample_weight if weight is None or target.is_floating_point() else sample_weight * weight[target]
        return (cross_entropy(logits, target, reduction="none") * sample_weight).sum() / scale.sum()

    return _torch_run(case, loss_of, x, target, compiled)


def _torch_relative(case: Case, arrays: Inputs, compiled: bool) -> Call | None:
    """Prepare a relative of cross entropy, where torch has one or its users write it in a line."""
    import torch

    functional = torch.nn.functional
    losses: dict[str, Any] = {
        "binary_cross_entropy_with_logits": functional.binary_cross_entropy_with_logits,
        "binary_focal_loss_with_logits": lambda x, t: (
            torch.sigmoid(x.where(t == 0, -x)) ** GAMMA * functional.softplus(x.where(t == 0, -x))
        ).mean(),
        "binary_cross_entropy": functional.binary_cross_entropy,
        "mse_loss": functional.mse_loss,
        "nll_loss": functional.nll_loss,
        "distillation_loss": lambda x, t: (
            TEMPERATURE**2 * functional.cross_entropy(x / TEMPERATURE, functional.softmax(t / TEMPERATURE, -1))
        ),
        "entropy": lambda p, _: -(p * p.log()).sum(-1).mean(),
        "kl_divergence": lambda q, p: functional.kl_div(q.log(), p, reduction="batchmean"),
    }
    loss = losses.get(case.function)
    if loss is None or case.options:
        return None
    return _torch_run(case, loss, _torch_tensor(arrays.logits), _torch_tensor(arrays.target), compiled)


def _torch_run(case: Case, loss_of: Any, x: Any, target: Any, compiled: bool) -> Call:
    import torch

    torch.compiler.reset()  # else the shapes of earlier cases count against a limit
    function = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    if not case.gradient:

        def forward() -> tuple[Any, None]:
            with torch.no_grad():
                return function(x, target), None

        return Call(forward, functools.partial(_read_torch, case))
    x = x.detach().requires_grad_()

    def loss_and_grad() -> tuple[Any, Any]:
        x.grad = None
        loss = function(x, target)
        loss.backward()
        return loss.detach(), x.grad

    return Call(loss_and_grad, functools.partial(_read_torch, case))


def jax_call(case: Case, arrays: Inputs) -> Call | None:
    # XLA takes all cores or none, and has no float64 unless the whole process does.
    if not case.plain or case.dtype == "float64" or case.threads != available_threads():
        return None
    import jax
    import optax

    x = jax.numpy.asarray(arrays.logits.reshape(-1, case.n_classes))
    labels = jax.numpy.asarray(arrays.target.reshape(-1).astype(np.int32))

    def loss_of(logits: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    function = jax.jit(jax.value_and_grad(loss_of) if case.gradient else loss_of)

    def run() -> tuple[Any, Any]:
        result = jax.block_until_ready(function(x, labels))
        return result if case.gradient else (result, None)

    return Call(run, functools.partial(_read, case))


def onnxruntime_call(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain or case.gradient or case.dtype != "float32":
        return None
    import onnxruntime
    from onnx import TensorProto, helper

    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "labels"], ["loss"], reduction="mean")],
            "cross_entropy",
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, [case.n_rows, case.n_classes]),
                helper.make_tensor_value_info("labels", TensorProto.INT64, [case.n_rows]),
            ],
            [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would spin into the next system
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"logits": arrays.logits.reshape(-1, case.n_classes), "labels": arrays.target.reshape(-1)}
    return Call(lambda: (session.run(None, feed)[0], None), functools.partial(_read, case))


def prange_call(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain or case.dtype not in WIDE:
        return None
    import numba

    x, labels = arrays.logits.reshape(-1, case.n_classes), arrays.target.reshape(-1)
    forward, loss_and_grad = _prange_kernels()
    out = None if arrays.out is None else arrays.out.reshape(x.shape)

    def run() -> tuple[Any, Any]:
        numba.set_num_threads(case.threads)
        if not case.gradient:
            return forward(x, labels), None
        grad = np.empty_like(x) if out is None else out
        return loss_and_grad(x, labels, grad), grad

    return Call(run, functools.partial(_read, case))


@functools.lru_cache(maxsize=1)
def _prange_kernels() -> tuple[Any, Any]:
    """Compile what a user of Numba writes first: a parallel loop over rows, np.exp inside."""
    import numba

    def forward(x: Any, labels: Any) -> Any:
        total = 0.0
        for i in numba.prange(x.shape[0]):
            m = x[i, 0]
            for k in range(x.shape[1]):
                m = max(m, x[i, k])
            s = 0.0
            for k in range(x.shape[1]):
                s += np.exp(x[i, k] - m)
            total += np.log(s) + m - x[i, labels[i]]
        return total / x.shape[0]

    def loss_and_grad(x: Any, labels: Any, grad: Any) -> Any:
        total = 0.0
        n_rows = x.shape[0]
        for i in numba.prange(n_rows):
            m = x[i, 0]
            for k in range(x.shape[1]):
                m = max(m, x[i, k])
            s = 0.0
            for k in range(x.shape[1]):
                e = np.exp(x[i, k] - m)
                grad[i, k] = e
                s += e
            scale = grad.dtype.type(1.0 / (s * n_rows))
            for k in range(x.shape[1]):
                grad[i, k] *= scale
            grad[i, labels[i]] -= 1.0 / n_rows
            total += np.log(s) + m - x[i, labels[i]]
        return total / n_rows

    compile_parallel = numba.njit(parallel=True)
    return compile_parallel(forward), compile_parallel(loss_and_grad)


def _torch_tensor(array: Array) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_torch(case: Case, result: tuple[Any, Any]) -> Answer:
    loss, grad = result
    return _read(case, (float(loss), None if grad is None else grad.float().numpy()))


def _read(case: Case, result: tuple[Any, ...]) -> Answer:
    grad = np.asarray(result[1]).reshape(case.shape) if case.gradient else None
    return Answer(float(np.asarray(result[0], np.float64)), grad)


PEERS = (
    System("prange", ("numba",), prange_call, streams=True),
    System("torch", ("torch",), torch_call),
    System("torch.compile", ("torch",), functools.partial(torch_call, compiled=True)),
    System("jax", ("jax", "optax"), jax_call),
    System("scipy", ("scipy",), scipy_call),
    System("sklearn", ("sklearn",), sklearn_call),
    System("onnxruntime", ("onnxruntime", "onnx"), onnxruntime_call),
    System("numexpr", ("numexpr",), numexpr_call),
)
