"""The public element-wise losses: binary cross entropy, of logits and of probabilities, its focal form, and squares."""

from __future__ import annotations

from typing import Any

from fastce import _inputs, _pipeline
from fastce._functions import LossAndGrad
from fastce._problem import Array, Kind


def binary_cross_entropy_with_logits(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Cross entropy of independent yes-or-no decisions, from logits.

    For a logit :math:`x` with target :math:`t`, the probability of yes, and
    :math:`\mathrm{softplus}(x) = \log(1 + e^x)`,

    .. math:: \mathrm{loss} = s\,w\,\bigl(a\,t\,\mathrm{softplus}(-x) + (1 - t)\,\mathrm{softplus}(x)\bigr)

    in nats, with sample weight :math:`s`, weight :math:`w` and positive weight :math:`a`. Label smoothing
    :math:`\varepsilon` takes :math:`(1-\varepsilon)\,t + \varepsilon/2` for :math:`t`.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape, layout and byte order. Nested lists are float64.
    target : array_like
        Numbers in [0, 1] of the shape of ``logits``, of any floating, integer or boolean dtype.
    weight : array_like, optional
        Multiplies the losses; broadcasts to the shape of ``logits``; finite, >= 0. A mean is not divided by it.
    pos_weight : array_like, optional
        Multiplies what yes costs; broadcasts to the shape of ``logits``; finite, >= 0.
    sample_weight : array_like, optional
        Multiplies the losses too; broadcasts to the shape of ``logits``; finite, >= 0. A mean is divided by its total.
        An element of weight 0 is ignored.
    label_smoothing : float, default 0.0
        In [0, 1].
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the total of ``sample_weight`` over all elements (by their number without it).
    denominator : float, optional
        A number > 0 that replaces the mean's own.
    base : float, optional
        Gives the loss as logarithm to this base (> 1), 2 for bits, instead of nats.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        A float for "mean" and "sum". For "none" the loss of each element, of the shape of ``logits``: float64 for
        float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        For an argument of a type, a shape or a value that is not accepted; targets and weights with the index of the
        first.
    BackendUnavailableError
        For a backend that was named and cannot run.

    See Also
    --------
    binary_cross_entropy : The same from probabilities.
    cross_entropy : One of several classes.

    Notes
    -----
    The softplus is :math:`\max(x, 0) + \mathrm{log1p}(e^{-|x|})`: nothing overflows, and tiny losses keep their
    relative accuracy, 4 ULP of float32 (of float64 for float64 logits), where :math:`t` is 0 or 1 and
    :math:`e^{-|x|}` is a normal number. Means and sums are added in float64, the same for any number of threads.

    An infinite logit is a certain decision: its loss is 0 where the target is as certain, else +inf. The loss of a
    NaN is NaN. Elements that are ignored cost 0 whatever they hold. A mean with nothing to average is NaN, and 0 where
    ``denominator`` is given. No warnings are given for any of these. The meaning of all options is that of PyTorch's
    function of this name.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.array([3.0, -1.0, 0.5])
    >>> round(fastce.binary_cross_entropy_with_logits(logits, [1, 0, 1]), 4)
    0.2786
    >>> fastce.binary_cross_entropy_with_logits(logits, [1, 0, 0.5], reduction="none").round(4)
    array([0.0486, 0.3133, 0.7241])
    >>> round(fastce.binary_cross_entropy_with_logits(logits, [1, 0, 1], pos_weight=2), 4)
    0.4529
    """
    request = _inputs.element_request(
        logits,
        target,
        kind=Kind.BINARY_LOGITS,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def binary_cross_entropy_with_logits_with_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`binary_cross_entropy_with_logits` and its gradient with respect to the logits.

    With the notation used there and :math:`\sigma` the logistic function,

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial x} = s\,w\,\bigl((1 - t)\,\sigma(x) - a\,t\,\sigma(-x)\bigr)

    times whatever the returned value is divided by; for ``reduction="none"`` that of the sum of the losses.

    Parameters
    ----------
    logits, target, weight, pos_weight, sample_weight, label_smoothing, reduction, denominator, base
        As for `binary_cross_entropy_with_logits`.
    grad_output : float or array_like, optional
        What the gradient is multiplied by: a number for "mean" and "sum", for "none" what broadcasts to the shape of
        ``logits``. Any sign.
    out : ndarray, optional
        Receives the gradient: a writable floating array of the shape of ``logits``, which may be ``logits`` itself.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        A named tuple: ``loss`` as from `binary_cross_entropy_with_logits`, bit for bit; ``grad`` is ``out``, or a new
        array of the shape, dtype and layout of ``logits``.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy_with_logits`; nothing has been written then.

    Notes
    -----
    Where the target is 0 or 1 the gradient is within 8 ULP of itself, else of the larger of its two terms; in float16
    and bfloat16 their own rounding comes on top. That of an ignored element is exactly 0, and finite where the loss is
    +inf.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_cross_entropy_with_logits_with_grad([3.0, -1.0, 0.5], [1, 0, 1])
    >>> grad.round(4)
    array([-0.0158,  0.0896, -0.1258])
    """
    request = _inputs.element_request(
        logits,
        target,
        kind=Kind.BINARY_LOGITS,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def binary_focal_loss_with_logits(
    logits: Any,
    target: Any,
    *,
    gamma: float = 2.0,
    alpha: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Focal loss of yes-or-no decisions: binary cross entropy that counts what is nearly right for less.

    With :math:`p` the probability that :math:`\sigma(x)` gives to the label, and :math:`\alpha` the label's weight,

    .. math:: \mathrm{loss} = s\,w\,\alpha\,(1 - p)^\gamma\,(-\log p)

    in nats [1]_.

    Parameters
    ----------
    logits : array_like
        As for `binary_cross_entropy_with_logits`.
    target : array_like
        Labels 0 and 1 of the shape of ``logits``, of any integer or boolean dtype.
    gamma : float, default 2.0
        The focusing exponent, >= 0; 0 gives binary cross entropy.
    alpha : float or array_like, optional
        A number in [0, 1], the weight of label 1 where that of label 0 is ``1 - alpha``; or the weights of both labels,
        shape ``(2,)``, label 0 first. Without it both are 1.
    weight, sample_weight
        As for `binary_cross_entropy_with_logits`.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the total of ``sample_weight``, whatever ``alpha`` is.
    denominator, base
        As for `binary_cross_entropy_with_logits`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `binary_cross_entropy_with_logits`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy_with_logits`.

    Notes
    -----
    :math:`1 - p` is taken as :math:`\sigma(-z)`, never as a difference, so that the loss of a confident decision keeps
    its digits: its relative error grows with :math:`\gamma`, by the rounding of the exponent of :math:`(1-p)^\gamma`.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_focal_loss_with_logits([3.0, -1.0, 0.5], [1, 0, 0], reduction="none").round(3)
    array([0.   , 0.023, 0.377])
    >>> fastce.binary_focal_loss_with_logits([3.0, -1.0, 0.5], [1, 0, 0], alpha=0.25, reduction="none").round(3)
    array([0.   , 0.017, 0.283])
    """
    request = _inputs.element_request(
        logits,
        target,
        kind=Kind.BINARY_LOGITS,
        gamma=gamma,
        alpha=alpha,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
        base=base,
        focal=True,
    )
    return _pipeline.loss(request, backend, num_threads)


def binary_focal_loss_with_logits_with_grad(
    logits: Any,
    target: Any,
    *,
    gamma: float = 2.0,
    alpha: Any = None,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`binary_focal_loss_with_logits` and its gradient with respect to the logits.

    With :math:`z = x` for label 1, :math:`-x` for label 0, and :math:`p = \sigma(z)`,

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial z}
              = -s\,w\,\alpha\,(1-p)^\gamma\,\bigl((1 - p) + \gamma\,p\,(-\log p)\bigr)

    two terms of one sign, times whatever the returned value is divided by.

    Parameters
    ----------
    logits, target, gamma, alpha, weight, sample_weight, reduction, denominator, base
        As for `binary_focal_loss_with_logits`.
    grad_output, out
        As for `binary_cross_entropy_with_logits_with_grad`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `binary_cross_entropy_with_logits_with_grad`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy_with_logits`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_focal_loss_with_logits_with_grad([3.0, -1.0, 0.5], [1, 0, 0], gamma=1)
    >>> grad.round(4)
    array([-0.0015,  0.0446,  0.2055])
    """
    request = _inputs.element_request(
        logits,
        target,
        kind=Kind.BINARY_LOGITS,
        gamma=gamma,
        alpha=alpha,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
        base=base,
        focal=True,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def binary_cross_entropy(
    probs: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    eps: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Cross entropy of independent yes-or-no decisions, from the probabilities of yes.

    .. math:: \mathrm{loss} = s\,w\,\bigl(-t \log p - (1 - t) \log(1 - p)\bigr)

    in nats, with the options of `binary_cross_entropy_with_logits`.

    Parameters
    ----------
    probs : array_like
        Probabilities, in [0, 1]: float16, bfloat16, float32 or float64, of any shape, layout and byte order.
    target, weight, sample_weight, label_smoothing
        As for `binary_cross_entropy_with_logits`.
    eps : float, default 0.0
        In [0, 0.5]: probabilities are taken as at least this and at most ``1 - eps``, as other libraries do. Without it
        they are taken as they are.
    reduction, denominator, base
        As for `binary_cross_entropy_with_logits`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `binary_cross_entropy_with_logits`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy_with_logits`.

    Notes
    -----
    The second logarithm is :math:`\mathrm{log1p}(-p)`, which keeps the digits of a small :math:`p`; both are within 4
    ULP. A probability that rounding made 0 or 1 costs +inf where the target disagrees, and 0 where it does not
    (:math:`0 \log 0 = 0`). What is NaN, or no probability, has the loss NaN.

    Examples
    --------
    >>> import fastce
    >>> fastce.binary_cross_entropy([0.9, 0.2, 0.0], [1, 0, 0], reduction="none").round(4)
    array([0.1054, 0.2231, 0.    ])
    >>> fastce.binary_cross_entropy([0.0], [1])
    inf
    >>> round(fastce.binary_cross_entropy([0.0], [1], eps=1e-7), 4)
    16.1181
    """
    request = _inputs.element_request(
        probs,
        target,
        kind=Kind.BINARY_PROBABILITIES,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        eps=eps,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def binary_cross_entropy_with_grad(
    probs: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
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
    r"""`binary_cross_entropy` and its gradient with respect to the probabilities.

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial p} = s\,w\,\Bigl(\frac{1 - t}{1 - p} - \frac{t}{p}\Bigr)

    times whatever the returned value is divided by; 0 where ``eps`` clips.

    Parameters
    ----------
    probs, target, weight, sample_weight, label_smoothing, eps, reduction, denominator, base
        As for `binary_cross_entropy`.
    grad_output, out
        As for `binary_cross_entropy_with_logits_with_grad`, with ``probs`` in the place of ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `binary_cross_entropy_with_logits_with_grad`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy`; nothing has been written then.

    Notes
    -----
    Where the loss is +inf, at a probability of exactly 0 or 1, so is the size of its derivative.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_cross_entropy_with_grad([0.5, 0.2], [1, 0], reduction="sum")
    >>> grad
    array([-2.  ,  1.25])
    """
    request = _inputs.element_request(
        probs,
        target,
        kind=Kind.BINARY_PROBABILITIES,
        weight=weight,
        sample_weight=sample_weight,
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


def mse_loss(
    prediction: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Squared differences, the cross entropy under a Gaussian of fixed variance.

    .. math:: \mathrm{loss} = s\,w\,(x - t)^2

    The negative log-likelihood of :math:`t` under a Gaussian of mean :math:`x` and variance 1 is
    :math:`\tfrac12 (x - t)^2 + \tfrac12 \log 2\pi`: half of this loss, up to a constant.

    Parameters
    ----------
    prediction : array_like
        float16, bfloat16, float32 or float64, of any shape, layout and byte order. Nested lists are float64.
    target : array_like
        Numbers of the shape of ``prediction``, of any floating, integer or boolean dtype; read in the dtype that the
        arithmetic has, float32 or for a float64 prediction float64.
    weight, sample_weight
        As for `binary_cross_entropy_with_logits`.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the total of ``sample_weight`` over all elements (by their number without it).
    denominator : float, optional
        A number > 0 that replaces the mean's own.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        A float for "mean" and "sum". For "none" the loss of each element: float64 for a float64 prediction, else
        float32.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `binary_cross_entropy_with_logits`.

    Notes
    -----
    Within 4 ULP of each loss where it is a normal number. NaN and infinities are as arithmetic has them, and no
    warnings are given; an ignored element (sample weight 0) costs 0 whatever it holds.

    Examples
    --------
    >>> import fastce
    >>> fastce.mse_loss([1.0, 2.0, 4.0], [1, 2, 2])
    1.3333333333333333
    >>> fastce.mse_loss([1.0, 2.0, 4.0], [1, 2, 2], sample_weight=[1, 1, 0])
    0.0
    """
    request = _inputs.element_request(
        prediction,
        target,
        kind=Kind.SQUARES,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
    )
    return _pipeline.loss(request, backend, num_threads)


def mse_loss_with_grad(
    prediction: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`mse_loss` and its gradient with respect to the prediction, :math:`2\,s\,w\,(x - t)` over the denominator.

    Parameters
    ----------
    prediction, target, weight, sample_weight, reduction, denominator
        As for `mse_loss`.
    grad_output, out
        As for `binary_cross_entropy_with_logits_with_grad`, with ``prediction`` in the place of ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `binary_cross_entropy_with_logits_with_grad`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `mse_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> fastce.mse_loss_with_grad([1.0, 4.0], [1, 2])
    LossAndGrad(loss=2.0, grad=array([0., 2.]))
    """
    request = _inputs.element_request(
        prediction,
        target,
        kind=Kind.SQUARES,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))
