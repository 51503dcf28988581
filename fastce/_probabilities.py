"""The public functions of probabilities and log-probabilities: losses of rows, entropy and divergences."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastce import _inputs, _pipeline
from fastce._functions import LossAndGrad
from fastce._problem import Array, Kind


def nll_loss(
    log_probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Negative log-likelihood of labels, or cross entropy of target distributions, from log-probabilities.

    For a row :math:`x` of log-probabilities with the target measure :math:`q` of `cross_entropy`,

    .. math:: \mathrm{loss} = \sum_{q_k > 0} q_k\,(-x_k)

    in nats. The rows are taken as given, never normalised: of ``log_softmax(logits)`` this is
    ``cross_entropy(logits)``.

    Parameters
    ----------
    log_probs : array_like
        Logarithms of probabilities: float16, bfloat16, float32 or float64, of any layout and either byte order.
    target, axis, weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`.
    reduction, denominator, base
        As for `cross_entropy`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    See Also
    --------
    cross_entropy : From logits, in one pass.
    categorical_cross_entropy : From probabilities.

    Notes
    -----
    With labels and no smoothing one number a row is read. A class without mass costs nothing, whatever it holds; -inf
    where there is mass makes the loss +inf, and NaN makes it NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> log_probs = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> fastce.nll_loss(log_probs, [1, 2], reduction="none").round(4)
    array([0.3567, 0.9163])
    """
    request = _inputs.loss_request(
        log_probs,
        target,
        kind=Kind.LOG_PROBABILITIES,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def nll_loss_with_grad(
    log_probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`nll_loss` and its gradient with respect to the log-probabilities, :math:`-q_k` over the denominator.

    Parameters
    ----------
    log_probs, target, axis, weight, sample_weight, ignore_index, label_smoothing, reduction, denominator, base
        As for `nll_loss`.
    grad_output, out
        As for `cross_entropy_with_grad`, with ``log_probs`` in the place of ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `cross_entropy_with_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.nll_loss_with_grad([[-1.0, -2.0], [-3.0, -0.5]], [0, 1])
    >>> loss, grad.tolist()
    (0.75, [[-0.5, 0.0], [0.0, -0.5]])
    """
    request = _inputs.loss_request(
        log_probs,
        target,
        kind=Kind.LOG_PROBABILITIES,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def categorical_cross_entropy(
    probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    eps: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Cross entropy of probabilities against labels or target distributions.

    For a row :math:`p` of probabilities with the target measure :math:`q` of `cross_entropy`,

    .. math:: \mathrm{loss} = \sum_{q_k > 0} q_k\,(-\log p_k)

    in nats. The rows are taken as given, never normalised.

    Parameters
    ----------
    probs : array_like
        Probabilities: float16, bfloat16, float32 or float64, of any layout and either byte order.
    target, axis, weight, sample_weight, ignore_index, label_smoothing
        As for `cross_entropy`: labels, one-hot rows or any distribution.
    eps : float, default 0.0
        In [0, 0.5]: probabilities are taken as at least this and at most ``1 - eps``, as other libraries do. Without it
        they are taken as they are.
    reduction, denominator, base
        As for `cross_entropy`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    See Also
    --------
    cross_entropy : From logits: faster than softmax and this, and exact where a probability rounds to 0 or 1.
    entropy, kl_divergence : Its parts, of two distributions.

    Notes
    -----
    :math:`0 \log 0 = 0`: a class without mass costs nothing, whatever it holds. A probability of 0 where there is mass
    makes the loss +inf; a negative one, or NaN, makes it NaN. No warnings are given. Each logarithm is within 1 ULP of
    float32 (of float64 for float64 probabilities), the loss of a row within 4.

    Examples
    --------
    >>> import fastce
    >>> probs = [[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]
    >>> round(fastce.categorical_cross_entropy(probs, [1, 2]), 4)
    0.6365
    >>> round(fastce.categorical_cross_entropy(probs, [[0, 1, 0], [0.5, 0, 0.5]]), 4)
    0.7084
    >>> fastce.categorical_cross_entropy([[0.0, 1.0]], [0])
    inf
    """
    request = _inputs.loss_request(
        probs,
        target,
        kind=Kind.PROBABILITIES,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        eps=eps,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def categorical_cross_entropy_with_grad(
    probs: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    eps: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`categorical_cross_entropy` and its gradient with respect to the probabilities.

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial p_k} = -\frac{q_k}{p_k}

    times whatever the returned value is divided by; 0 where ``eps`` clips.

    Parameters
    ----------
    probs, target, axis, weight, sample_weight, ignore_index, label_smoothing, eps, reduction, denominator, base
        As for `categorical_cross_entropy`.
    grad_output, out
        As for `cross_entropy_with_grad`, with ``probs`` in the place of ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `cross_entropy_with_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.categorical_cross_entropy_with_grad([[0.5, 0.5], [0.25, 0.75]], [0, 0], reduction="sum")
    >>> grad.tolist()
    [[-2.0, 0.0], [-4.0, 0.0]]
    """
    request = _inputs.loss_request(
        probs,
        target,
        kind=Kind.PROBABILITIES,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        eps=eps,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def entropy(
    p: Any, *, axis: int = -1, base: float | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    r"""Entropy of each row of probabilities: :math:`H(p) = \sum_k p_k\,(-\log p_k)`, in nats.

    Parameters
    ----------
    p : array_like
        Numbers >= 0, finite, taken as given and never normalised: float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis that a distribution lies along.
    base : float, optional
        Gives the entropy as logarithm to this base (> 1), 2 for bits.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    ndarray
        One number a row, of the shape of ``p`` without ``axis``: float64 for float64, else float32.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        For an argument that is not accepted.

    Notes
    -----
    :math:`0 \log 0 = 0`. Within 4 ULP where no element is above 1, so that no two terms cancel.

    Examples
    --------
    >>> import fastce
    >>> fastce.entropy([[0.5, 0.5], [1.0, 0.0]], base=2)
    array([1., 0.])
    """
    request = _inputs.divergence_request(Kind.PROBABILITIES, p, p, axis=axis, reduction="none", base=base)
    result: Array = np.asarray(_pipeline.loss(request, backend, num_threads))
    return result


def kl_divergence(
    p: Any,
    q: Any,
    *,
    axis: int = -1,
    base: float | None = None,
    reduction: str = "none",
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Kullback-Leibler divergence of each row, :math:`\mathrm{KL}(p \,\|\, q) = \sum_{p_k > 0} p_k \log(p_k / q_k)`.

    Parameters
    ----------
    p : array_like
        The true distributions: numbers >= 0, finite, taken as given and never normalised.
    q : array_like
        What they are compared with, of the shape of ``p``; its dtype is that of the arithmetic (float32 for float16 and
        bfloat16).
    axis : int, default -1
        The axis that a distribution lies along.
    base : float, optional
        Gives the divergence as logarithm to this base (> 1), 2 for bits, instead of nats.
    reduction : {"none", "sum", "mean", "batchmean"}
        One value a row, their sum, their mean, or their sum over the length of the first axis that is not ``axis``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        For "none" one number a row: float64 for float64, else float32.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        For an argument that is not accepted.

    Notes
    -----
    A class with :math:`p_k = 0` adds 0 whatever :math:`q_k` is; :math:`p_k > 0` where :math:`q_k = 0` makes the
    divergence +inf. A negative or infinite :math:`q_k`, or NaN, makes it NaN where :math:`p_k > 0`. Each logarithm is
    formed from the difference of the two numbers where they are near, and within 2 ULP; terms of both signs add up, in
    float32 by a few and then in float64, so that the error of the sum is relative to the sum of their sizes.

    Examples
    --------
    >>> import fastce
    >>> fastce.kl_divergence([[0.5, 0.5]], [[0.25, 0.75]]).round(4)
    array([0.1438])
    >>> fastce.kl_divergence([0.5, 0.5], [0.0, 1.0], reduction="sum")
    inf
    """
    request = _inputs.divergence_request(Kind.KL, p, q, axis=axis, reduction=reduction, base=base)
    return _pipeline.loss(request, backend, num_threads)


def js_divergence(
    p: Any,
    q: Any,
    *,
    axis: int = -1,
    base: float | None = None,
    reduction: str = "none",
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Jensen-Shannon divergence of each row: the mean of both distributions' divergences from their mean.

    .. math:: \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p \,\|\, m) + \tfrac12 \mathrm{KL}(q \,\|\, m),
              \quad m = \tfrac12 (p + q)

    Symmetric, at most :math:`\log 2`, the square of the distance that some libraries return.

    Parameters
    ----------
    p, q, axis, base, reduction
        As for `kl_divergence`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `kl_divergence`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        For an argument that is not accepted.

    Notes
    -----
    Each class adds what is >= 0, computed from :math:`|p_k - q_k| / (p_k + q_k)`, so that divergences of nearly equal
    rows keep their digits.

    Examples
    --------
    >>> import fastce
    >>> fastce.js_divergence([[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.0, 1.0]], base=2).round(4)
    array([0.0488, 1.    ])
    """
    request = _inputs.divergence_request(Kind.JS, p, q, axis=axis, reduction=reduction, base=base)
    return _pipeline.loss(request, backend, num_threads)


def log_loss(
    y_true: Any,
    y_pred: Any,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
    from_logits: bool = False,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float:
    r"""Log loss of a classifier's predictions, with the signature and the meaning of scikit-learn's function.

    The mean over samples of :math:`-\log p`, with :math:`p` the probability predicted for the sample's label.

    Parameters
    ----------
    y_true : array_like
        The label of each sample, numbers or strings; or a matrix of the shape of ``y_pred`` that is 1 at the label.
    y_pred : array_like
        Probabilities, ``(n, C)``, or for two classes those of the second, ``(n,)`` or ``(n, 1)``: float16, bfloat16,
        float32 or float64. Classes are in the order of the sorted labels.
    normalize : bool, default True
        Whether to divide by the number of samples, or their total weight.
    sample_weight : array_like, optional
        ``(n,)``, finite, >= 0.
    labels : array_like, optional
        All labels there are, where ``y_true`` may not hold each of them.
    from_logits : bool, default False
        Whether ``y_pred`` are logits, which scikit-learn does not take: of softmax, or of the logistic function where
        there is one a sample. These are not clipped.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        For an argument that is not accepted: probabilities outside of [0, 1], a label that is not in ``labels``, fewer
        than two classes.

    See Also
    --------
    categorical_cross_entropy, binary_cross_entropy : The same without a clip.

    Notes
    -----
    Probabilities are clipped to ``[eps, 1 - eps]``, with the ``eps`` of their dtype, and not normalised. Rows that do
    not sum to 1, of which scikit-learn warns, are taken as they are.

    Examples
    --------
    >>> import fastce
    >>> y_pred = [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]]
    >>> round(fastce.log_loss(["spam", "ham", "ham", "spam"], y_pred), 4)
    0.2162
    >>> round(fastce.log_loss(["spam", "ham"], [2.0, -3.0], from_logits=True), 4)
    0.0878
    """
    request = _inputs.log_loss_request(
        y_true, y_pred, normalize=normalize, sample_weight=sample_weight, labels=labels, from_logits=from_logits
    )
    return float(_pipeline.loss(request, backend, num_threads))
