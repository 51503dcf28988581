"""The public functions: their signatures and their documentation; the work is one call into the pipeline."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

from fastce import _inputs, _pipeline
from fastce._problem import Array, Output

_quick, _no_quick = _pipeline.quick, _pipeline.NO_QUICK


class LossAndGrad(NamedTuple):
    """The result of `cross_entropy_with_grad`.

    Attributes
    ----------
    loss : float or ndarray
        An array for ``reduction="none"``.
    grad : ndarray
        Of the shape of the logits.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> round(loss, 4), grad.tolist()
    (0.6931, [[-0.5, 0.5]])
    """

    loss: Any
    grad: Array


@overload
def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = ...,
    weight: Any = ...,
    sample_weight: Any = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    temperature: float | None = ...,
    softcap: float | None = ...,
    spread_missing: bool = ...,
    reduction: Literal["mean", "sum"] = ...,
    denominator: float | None = ...,
    base: float | None = ...,
    backend: str = ...,
    num_threads: int | None = ...,
) -> float: ...
@overload
def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = ...,
    weight: Any = ...,
    sample_weight: Any = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    temperature: float | None = ...,
    softcap: float | None = ...,
    spread_missing: bool = ...,
    reduction: Literal["none"],
    denominator: None = ...,
    base: float | None = ...,
    backend: str = ...,
    num_threads: int | None = ...,
) -> Array: ...
@overload
def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = ...,
    weight: Any = ...,
    sample_weight: Any = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    temperature: float | None = ...,
    softcap: float | None = ...,
    spread_missing: bool = ...,
    reduction: str,
    denominator: float | None = ...,
    base: float | None = ...,
    backend: str = ...,
    num_threads: int | None = ...,
) -> float | Array: ...
def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Softmax cross entropy between logits and labels or target distributions.

    For a row :math:`x` of logits with target measure :math:`q`, and :math:`Q = \sum_k q_k`,

    .. math:: \mathrm{loss} = Q \log \sum_k e^{x_k} - \sum_k q_k x_k + z \Bigl(\log \sum_k e^{x_k}\Bigr)^2

    in nats. With a label :math:`y`, class weights :math:`w`, sample weight :math:`s`, label smoothing
    :math:`\varepsilon` and :math:`C` classes, :math:`q_k = s\,((1-\varepsilon)\,w_y\,[k=y] + w_k\,\varepsilon/C)`;
    with a dense target :math:`t`, or a sparse one that stands for it, :math:`q_k = s\,w_k\,((1-\varepsilon)\,t_k +
    \varepsilon/C)`. Plainly: minus the logarithm of the probability that softmax gives to the label. With a temperature
    :math:`T` or a softcap :math:`c`, :math:`x` is what they make of the logits, everywhere.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities: float16, bfloat16 (of ``ml_dtypes`` or torch), float32 or float64, of any
        layout and either byte order; never copied as a whole by the compiled backends. Nested lists are float64.
        Arrays of other libraries are read in place where they lie in host memory.
    target : array_like
        Integer labels of the shape of ``logits`` without the class axis, or a dense target of the shape of
        ``logits``: numbers >= 0 of any floating, integer or boolean dtype, finite in float32 (in float64 for
        float64 logits), which need not sum to 1. The number of dimensions decides. Or a sparse target, a tuple
        ``(indices, probabilities)`` of arrays with the dimensions of ``logits`` and, along the class axis, any length:
        classes, of any integer dtype, and the target's numbers for them. All other classes have 0, or with
        ``spread_missing`` a part of the rest; those of a class that is listed more than once are added. An index of -1
        lists nothing, whatever its probability.
    axis : int, default -1
        The class axis.
    weight : array_like, optional
        A weight for each class, shape ``(C,)``, finite, >= 0.
    sample_weight : array_like, optional
        A weight for each row, of the shape of labels, finite, >= 0. A row of weight 0 is ignored.
    ignore_index : int, default -100
        Rows with this label are ignored: their loss is 0 and their logits are not read. It is compared by value:
        -100 equals no uint8 label.
    label_smoothing : float, default 0.0
        In [0, 1]: the part of the target that is spread evenly over all classes.
    z_loss : float, default 0.0
        Coefficient, >= 0, of the squared log-sum-exp of each row (times its sample weight).
    temperature : float, optional
        A number > 0, :math:`T`: logits are divided by it, :math:`x / T` stands for :math:`x`. 1 has the bits of None.
    softcap : float, optional
        A number > 0, :math:`c`, below which logits stay: :math:`c \tanh(x / (T c))` stands for :math:`x`.
    spread_missing : bool, default False
        Whether what a row of a sparse target lacks to 1 goes to the classes it does not list, the same to each. The row
        must not sum to more than 1 then, but for the rounding of its dtype.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the total of ``sample_weight * weight[label]`` over the rows that are not
        ignored; with a dense or sparse target by the total of ``sample_weight``.
    denominator : float, optional
        A number > 0 that replaces the mean's own, as for a batch that comes in parts.
    base : float, optional
        Gives the loss as logarithm to this base (> 1), 2 for bits, instead of nats; the z term included.
    backend : {"auto", "cython", "numba", "numpy"}
        "auto" asks `use_backend`, then the environment variable FASTCE_BACKEND, then takes the first that can run.
    num_threads : int, optional
        The most threads to use. By default `use_backend`, FASTCE_NUM_THREADS, OMP_NUM_THREADS, or the smallest of
        CPU affinity, cgroup quota and cores decides. The result has the same bits for any number.

    Returns
    -------
    float or ndarray
        A float for "mean" and "sum". For "none" the loss of each row, of the shape of labels: float64 for float64
        logits, else float32.

    Raises
    ------
    IndexError
        For a label, or a class in a list, that is out of range, with its value and the index of the first.
    TypeError
        For an array or number of a type that is not accepted.
    ValueError
        For a shape, a weight, a dense or sparse target or an option that is not accepted.
    BackendUnavailableError
        For a backend that was named and cannot run.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient, for little more than the loss.
    explain : Which backend, kernel and threads a call gets, and why.

    Notes
    -----
    **Accuracy.** float16 and bfloat16 logits are computed in float32. The maximum :math:`m` of a row is taken out
    first, :math:`r = \sum e^{x_k - m}` leaves out one position where it is reached, and the loss is
    :math:`Q\,\mathrm{log1p}(r) + \sum q_k (m - x_k)` [1]_: no exponential overflows, no two terms cancel, so that
    tiny losses keep their relative accuracy. Sums over rows are float64 and the same for any number of threads.

    In units in the last place (ULP) of float32, or of float64 for float64 logits, the loss of a row is within 4 ULP
    of the exact value, relative to itself however small it is. On top of that comes what no method that subtracts
    first can avoid: in a row where some difference of a logit to :math:`m` or to the label's is not exact, half a ULP
    of each :math:`x_k - m`, relative, in its exponential, weighted by :math:`Q p_k`. A z-loss adds :math:`z` times
    what the square of the log-sum-exp is off by, which itself is within 4 ULP of :math:`\max(|m|, \log(1 + r))`. An
    :math:`e^{x_k - m}` below twice the smallest normal number may be lost. A temperature divides the differences
    :math:`x_k - m`, so that large offsets cost no digits; where it is no power of two, two more roundings of each are
    allowed like that of the difference. With a softcap what stands for a logit is within 5 ULP. The tests hold every
    backend to these bounds.

    **Special values.** A logit of -inf is a class that is excluded: its probability is 0, and a target that puts
    mass on it makes the loss +inf. A row with NaN or +inf, or of -inf alone, has the loss NaN; ignored rows are 0
    whatever they hold. A softcap makes finite numbers of infinite logits, :math:`\pm c`. A mean with nothing to
    average (no rows, all ignored, weights that sum to 0) is NaN, and 0 where ``denominator`` is given. No warnings
    are given for any of these.

    Label smoothing is that of [2]_, the z-loss that of [3]_, the softcap that of [4]_.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA Journal of Numerical Analysis 41 (2021).
    .. [2] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 24 (2023).
    .. [4] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118 (2024).

    Examples
    --------
    A true class of probability 0.7 costs 0.3567 nats:

    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> losses = fastce.cross_entropy(logits, [1, 2], reduction="none")
    >>> np.round(losses, 4)
    array([0.3567, 0.9163])
    >>> round(fastce.cross_entropy(logits, [1, 2]), 4)
    0.6365

    The same from a one-hot target, and in bits:

    >>> round(fastce.cross_entropy(logits, [[0, 1, 0], [0, 0, 1]]), 4)
    0.6365
    >>> round(fastce.cross_entropy(logits, [1, 2], base=2), 4)
    0.9183

    Class weights, an ignored row, and images whose classes are axis 1:

    >>> round(fastce.cross_entropy(logits, [1, 2], weight=[1, 3, 1]), 4)
    0.4966
    >>> round(fastce.cross_entropy(logits, [1, -100]), 4)
    0.3567
    >>> images = np.zeros((2, 10, 4, 4), np.float32)
    >>> round(fastce.cross_entropy(images, np.zeros((2, 4, 4), int), axis=1), 4)
    2.3026

    A temperature, a softcap, and a sparse target: the two most probable classes of a teacher, the rest spread over the
    others:

    >>> round(fastce.cross_entropy(logits, [1, 2], temperature=2.0), 4)
    0.8267
    >>> round(fastce.cross_entropy(logits, [1, 2], softcap=1.0), 4)
    0.8812
    >>> top = ([[1, 0], [2, 1]], [[0.6, 0.3], [0.5, 0.25]])
    >>> round(fastce.cross_entropy(logits, top, spread_missing=True), 4)
    0.9936

    A label that is not there is named:

    >>> fastce.cross_entropy(logits, [1, 3])
    Traceback (most recent call last):
    IndexError: target: label 3 at index (1,) is out of range for 3 classes
    """
    plain = temperature is None and softcap is None and spread_missing is False and type(backend) is str
    quick = _quick.get(backend, _no_quick) if plain else _no_quick
    small = quick.loss(
        logits,
        target,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        z_loss,
        reduction,
        denominator,
        base,
        num_threads,
    )
    if small is not None:
        return small
    request = _inputs.loss_request(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    loss = _pipeline.loss(request, backend, num_threads)
    _pipeline.settle_quick(backend)
    return loss


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""Softmax cross entropy and its gradient with respect to the logits.

    With the notation of `cross_entropy`, :math:`p` the softmax of a row and :math:`\ell` its log-sum-exp,

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial x_k} = (Q + 2 z \ell)\,p_k - q_k

    times whatever the returned value is divided by, and with a temperature or a softcap times the derivative of
    what stands for the logit, :math:`1/T` or :math:`\operatorname{sech}^2(x_k / (T c)) / T`: the gradient is that
    of the value returned, with the mean's denominator and ``base`` in it; for ``reduction="none"`` that of the sum
    of the losses.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
        As for `cross_entropy`; the gradient is that of the logits themselves.
    spread_missing, reduction, denominator, base
        As for `cross_entropy`.
    grad_output : float or array_like, optional
        What the gradient is multiplied by: a number for "mean" and "sum", an array of the shape of the losses for
        "none". Any sign.
    out : ndarray, optional
        Receives the gradient: a writable array of float16, bfloat16, float32 or float64 of the shape of ``logits``.
        It may be ``logits`` itself, which are then overwritten; any other overlap with an input is an error.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        A named tuple. ``loss`` has the same bits as that of `cross_entropy`; ``grad`` is ``out``, or a new array of
        the shape, dtype and layout of ``logits`` (in the byte order of this machine).

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`; nothing has been written then.

    See Also
    --------
    cross_entropy : The loss alone.

    Notes
    -----
    The gradient of an ignored row is exactly 0, and so is every gradient of a mean that has nothing to average. A
    logit of -inf gets :math:`-q_k`, finite even where the loss is +inf. Where a row's loss is NaN its gradient is, and
    no other row's. Where all of the target sits on the row's maximum, the gradient there is computed as
    :math:`-Q\,r/(1 + r)` and not as a difference, so that it keeps its relative accuracy however small.

    **Accuracy.** In ULP of float32, or of float64 for float64 logits, each element is within 8 ULP of the exact
    value, relative to itself, where the target of a row is one class (a label without smoothing) and there is no
    z-loss. For other targets it is within 8 ULP of :math:`\max(Q p_k, q_k)`, and a z-loss adds 8 ULP of :math:`2 z
    |\ell| p_k` and :math:`2 z p_k` times the error of :math:`\ell`. The rounding of :math:`x_k - m`, and for a
    label that of its own distance from :math:`m`, comes on top as it does in `cross_entropy`; so does half a ULP of
    the dtype of ``grad``, and with a softcap 8 ULP of its derivative, and three roundings of :math:`x_k / (T c)`
    in it.

    float16 has no numbers below 6e-8: gradients of a mean over many rows vanish in it. Ask for them scaled with
    ``grad_output``, or in another dtype with ``out``, as shown below.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> loss, grad = fastce.cross_entropy_with_grad(logits, [1, 2])
    >>> round(loss, 4)
    0.6365
    >>> grad.round(4)
    array([[ 0.1 , -0.15,  0.05],
           [ 0.15,  0.15, -0.3 ]])

    In place, without memory for a second array:

    >>> result = fastce.cross_entropy_with_grad(logits, [1, 2], out=logits)
    >>> result.grad is logits
    True

    Loss scaling, which keeps small gradients in the range of float16:

    >>> half = np.array([[12, 0, 0]], np.float16)
    >>> fastce.cross_entropy_with_grad(half, [0], denominator=1000).grad
    array([[-0.,  0.,  0.]], dtype=float16)
    >>> scaled = fastce.cross_entropy_with_grad(half, [0], denominator=1000, grad_output=2.0**16).grad
    >>> np.round(scaled.astype(np.float32) / 2.0**16 * 1e9, 2)
    array([[-12.29,   6.14,   6.14]], dtype=float32)
    """
    plain = temperature is None and softcap is None and spread_missing is False and type(backend) is str
    quick = _quick.get(backend, _no_quick) if plain else _no_quick
    small = quick.loss_and_grad(
        logits,
        target,
        axis,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        z_loss,
        reduction,
        denominator,
        base,
        grad_output,
        out,
        num_threads,
    )
    if small is not None:
        return LossAndGrad(*small)
    request = _inputs.loss_request(
        logits,
        target,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        spread_missing=spread_missing,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    both = LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))
    _pipeline.settle_quick(backend)
    return both


def focal_loss(
    logits: Any,
    target: Any,
    *,
    gamma: float = 2.0,
    alpha: Any = None,
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Focal loss: softmax cross entropy that counts what is nearly right for less.

    With :math:`p` the probability that softmax gives to the label :math:`y`,

    .. math:: \mathrm{loss} = s\,\alpha_y\,(1 - p)^\gamma\,(-\log p)

    in nats [1]_.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    target : array_like
        Integer labels of the shape of ``logits`` without the class axis.
    gamma : float, default 2.0
        The focusing exponent, >= 0; 0 gives cross entropy.
    alpha : float or array_like, optional
        A number >= 0 that multiplies every loss, or one for each class, shape ``(C,)``.
    axis, sample_weight, ignore_index
        As for `cross_entropy`.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the total of ``sample_weight`` over the rows that are not ignored, whatever ``alpha``
        is.
    denominator, base
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
    binary_focal_loss_with_logits : Of independent yes-or-no decisions.

    Notes
    -----
    :math:`1 - p` is :math:`-\mathrm{expm1}` of minus the cross entropy :math:`c` of the row, never a difference: the
    relative error of the loss is at most :math:`1 + \gamma` times that of :math:`c`, however small, and of the dtype's
    rounding. Infinite cross entropy is an infinite loss; NaN stays NaN.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> fastce.focal_loss(logits, [1, 2], reduction="none").round(4)
    array([0.0321, 0.3299])
    >>> round(fastce.focal_loss(logits, [1, 2], gamma=0), 4), round(fastce.cross_entropy(logits, [1, 2]), 4)
    (0.6365, 0.6365)
    """
    request = _inputs.focal_request(
        logits,
        target,
        gamma=gamma,
        alpha=alpha,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def focal_loss_with_grad(
    logits: Any,
    target: Any,
    *,
    gamma: float = 2.0,
    alpha: Any = None,
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`focal_loss` and its gradient with respect to the logits.

    With the notation used there, and :math:`p_k` the softmax,

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial x_k}
              = s\,\alpha_y \bigl((1 - p)^\gamma + \gamma\,p\,(1 - p)^{\gamma - 1} (-\log p)\bigr) (p_k - [k = y])

    times whatever the returned value is divided by.

    Parameters
    ----------
    logits, target, gamma, alpha, axis, sample_weight, ignore_index, reduction, denominator, base
        As for `focal_loss`.
    grad_output, out
        As for `cross_entropy_with_grad`.
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
    >>> import numpy as np
    >>> import fastce
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    >>> loss, grad = fastce.focal_loss_with_grad(logits, [1, 2])
    >>> grad.round(4)
    array([[ 0.024 , -0.036 ,  0.012 ],
           [ 0.12  ,  0.12  , -0.2399]])
    """
    request = _inputs.focal_request(
        logits,
        target,
        gamma=gamma,
        alpha=alpha,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def distillation_loss(
    logits: Any,
    teacher_logits: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> float | Array:
    r"""Cross entropy of softmax against the softmax of a teacher's logits, both at a temperature.

    For rows :math:`x` of logits and :math:`t` of a teacher's, with :math:`q = \mathrm{softmax}(t / T)`,

    .. math:: \mathrm{loss} = s\,T^2 \Bigl(\log \sum_k e^{x_k / T} - \sum_k q_k\,x_k / T\Bigr)

    in nats: cross entropy, not a divergence, times :math:`T^2` so that its gradient keeps its size [1]_.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    teacher_logits : array_like
        Of the shape of ``logits``: float16, bfloat16, float32 or float64, of any layout.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        T, > 0.
    sample_weight : array_like, optional
        A weight for each row, of the shape of ``logits`` without the class axis, finite, >= 0. A row of weight 0 is
        ignored.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the total of ``sample_weight``, without it by the number of rows.
    denominator, base
        As for `cross_entropy`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        As for `cross_entropy`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        For an argument that is not accepted.

    See Also
    --------
    cross_entropy : Against probabilities.

    Notes
    -----
    No array of probabilities is made: both rows are read once. A logit of -inf is an excluded class; one to which the
    teacher gives probability makes the loss +inf. A row with NaN or +inf, or of -inf alone, on either side, has the
    loss NaN. The divergence is this minus ``T**2 * entropy(softmax(teacher_logits / T))``, which does not depend on the
    logits.

    References
    ----------
    .. [1] G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", 2015.

    Examples
    --------
    >>> import fastce
    >>> round(fastce.distillation_loss([[1.0, 2.0, 0.5]], [[2.0, 2.0, 0.0]]), 4)
    1.0277
    >>> round(fastce.distillation_loss([[1.0, 2.0, 0.5]], [[2.0, 2.0, 0.0]], temperature=2), 4)
    4.2381
    """
    request = _inputs.distillation_request(
        logits,
        teacher_logits,
        axis=axis,
        temperature=temperature,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
        base=base,
    )
    return _pipeline.loss(request, backend, num_threads)


def distillation_loss_with_grad(
    logits: Any,
    teacher_logits: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    out: Array | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> LossAndGrad:
    r"""`distillation_loss` and its gradient with respect to the logits.

    .. math:: \frac{\partial\,\mathrm{loss}}{\partial x_k} = s\,T\,(p_k - q_k), \quad p = \mathrm{softmax}(x / T)

    times whatever the returned value is divided by.

    Parameters
    ----------
    logits, teacher_logits, axis, temperature, sample_weight, reduction, denominator, base
        As for `distillation_loss`.
    grad_output, out
        As for `cross_entropy_with_grad`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    LossAndGrad
        As for `cross_entropy_with_grad`.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `distillation_loss`; nothing has been written then.

    Notes
    -----
    Each element is within 8 ULP of :math:`\max(p_k, q_k)`, times :math:`s\,T`.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.distillation_loss_with_grad([[1.0, 2.0, 0.5]], [[2.0, 2.0, 0.0]])
    >>> grad.round(3)
    array([[-0.237,  0.16 ,  0.077]])
    """
    request = _inputs.distillation_request(
        logits,
        teacher_logits,
        axis=axis,
        temperature=temperature,
        sample_weight=sample_weight,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=True,
        grad_output=grad_output,
        out=out,
    )
    return LossAndGrad(*_pipeline.loss_and_grad(request, backend, num_threads))


def softmax(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    r"""Softmax of each row: :math:`p_k = e^{x_k} / \sum_j e^{x_j}`.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    axis : int, default -1
        The class axis, along which the result sums to 1.
    out : ndarray, optional
        Receives the result: a writable array of float16, bfloat16, float32 or float64 of the shape of ``logits``,
        which may be ``logits`` itself.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    ndarray
        ``out``, or a new array of the shape, dtype and layout of ``logits``.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    See Also
    --------
    log_softmax : Its logarithm.

    Notes
    -----
    Computed as :math:`e^{x_k - m} / (1 + r)` with the maximum :math:`m` and :math:`r` of `cross_entropy`, in float32
    for float16 and bfloat16. A logit of -inf has probability 0. A row with NaN or +inf, or of -inf alone, is NaN.
    Each probability is within 8 ULP of itself, plus the rounding of :math:`x_k - m` as in `cross_entropy`; one whose
    :math:`e^{x_k - m}` is below twice the smallest normal number may be lost.

    Examples
    --------
    >>> import fastce
    >>> fastce.softmax([[0.0, 0.0], [1000.0, float("-inf")]])
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    request = _inputs.map_request(Output.SOFTMAX, logits, axis, out)
    return _pipeline.softmax(request, backend, num_threads)


def log_softmax(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    r"""Logarithm of the softmax of each row: :math:`x_k - \log \sum_j e^{x_j}`, in nats.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        As for `softmax`.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    ndarray
        ``out``, or a new array of the shape, dtype and layout of ``logits``.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    See Also
    --------
    softmax : The probabilities themselves.

    Notes
    -----
    Computed as :math:`(x_k - m) - \mathrm{log1p}(r)` with the maximum :math:`m` and :math:`r` of `cross_entropy`, so
    that the logarithm of a probability near 1 keeps its relative accuracy: 4 ULP, plus the rounding of
    :math:`x_k - m` as in `cross_entropy`. A logit of -inf gives -inf. A row with NaN or +inf, or of -inf alone, is NaN.

    Examples
    --------
    >>> import fastce
    >>> fastce.log_softmax([[0.0, 0.0, float("-inf")]]).round(4)
    array([[-0.6931, -0.6931,    -inf]])
    """
    request = _inputs.map_request(Output.LOG_SOFTMAX, logits, axis, out)
    return _pipeline.softmax(request, backend, num_threads)


def logsumexp(
    logits: Any, *, axis: int = -1, out: Array | None = None, backend: str = "auto", num_threads: int | None = None
) -> Array:
    r"""Logarithm of the sum of exponentials of each row: :math:`\log \sum_k e^{x_k}`, in nats.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    axis : int, default -1
        The class axis, which the result lacks.
    out : ndarray, optional
        Receives the result: a writable array of float16, bfloat16, float32 or float64 of the shape of ``logits``
        without the class axis, apart from ``logits``.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    ndarray
        ``out``, or a new array: float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    Notes
    -----
    Computed as :math:`m + \mathrm{log1p}(r)` with the maximum :math:`m` and :math:`r` of `cross_entropy`, within 4 ULP
    of :math:`\max(|m|, \log(1 + r))` plus the rounding of :math:`x_k - m`. A row with NaN is NaN; else one with +inf is
    +inf; one of -inf alone is -inf.

    Examples
    --------
    >>> import fastce
    >>> fastce.logsumexp([[1000.0, 1000.0]]).round(4)
    array([1000.6931])
    """
    request = _inputs.map_request(Output.LSE, logits, axis, out)
    return _pipeline.logsumexp(request, backend, num_threads)


class RowStatistics(NamedTuple):
    """The result of `row_statistics`: one number a row for each field, None for those not asked for.

    Attributes
    ----------
    lse : ndarray
        Log of the sum of exponentials.
    loss : ndarray
        Cross entropy of the label.
    entropy : ndarray
        Entropy of softmax.
    argmax : ndarray of int64
        The class of the greatest logit, the first of equals.
    target_probability : ndarray
        What softmax gives to the label.
    rank : ndarray of int64
        How many logits are greater than the label's: 0 is the best.
    margin : ndarray
        The label's logit minus the greatest of the others.
    correct : ndarray of bool
        Whether argmax is the label.

    Examples
    --------
    >>> import fastce
    >>> found = fastce.row_statistics([[1.0, 3.0, 2.0]], [2])
    >>> found.rank, found.margin, found.correct
    (array([1]), array([-1.]), array([False]))
    """

    lse: Array | None = None
    loss: Array | None = None
    entropy: Array | None = None
    argmax: Array | None = None
    target_probability: Array | None = None
    rank: Array | None = None
    margin: Array | None = None
    correct: Array | None = None


def row_statistics(
    logits: Any,
    target: Any = None,
    *,
    fields: Any = None,
    axis: int = -1,
    ignore_index: int = -100,
    base: float | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> RowStatistics:
    r"""What is asked of an evaluation about each row of logits, in one visit of it.

    With :math:`p` the softmax of a row, :math:`\ell` its log-sum-exp and :math:`y` its label: :math:`\ell`, the loss
    :math:`\ell - x_y`, the entropy :math:`-\sum_k p_k \log p_k`, :math:`\arg\max_k x_k`, :math:`p_y`, the rank
    :math:`\#\{k : x_k > x_y\}`, the margin :math:`x_y - \max_{k \ne y} x_k`, and whether the argmax is the label.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    target : array_like, optional
        Integer labels, of the shape of ``logits`` without the class axis.
    fields : str or iterable of str, optional
        The names of the attributes of `RowStatistics` that are wanted; the others are None and cost nothing. By
        default all, or without a target those that need none: ``lse``, ``entropy``, ``argmax``.
    axis : int, default -1
        The class axis.
    ignore_index : int, default -100
        Rows with this label have no label: loss 0, ``target_probability`` and ``margin`` NaN, rank -1, not correct.
    base : float, optional
        Gives loss and entropy as logarithms to this base (> 1), 2 for bits, instead of nats.
    backend, num_threads
        As for `cross_entropy`.

    Returns
    -------
    RowStatistics
        A named tuple of arrays of the shape of labels: float64 for float64 logits, else float32; int64 for ``argmax``
        and ``rank``, bool for ``correct``. Those of one dtype are views of one array, which each
        keeps alive.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As for `cross_entropy`.

    See Also
    --------
    cross_entropy : The loss alone.

    Notes
    -----
    Loss, entropy and probability are sums and quotients of numbers >= 0, within 4 ULP of float32 (float64 for float64
    logits) as far as the differences of logits are exact, 8 for the probability. A logit of -inf is an excluded class.
    In a row with NaN, with +inf or of -inf alone, loss, entropy and probability are NaN, lse is that of `logsumexp`,
    and argmax the first NaN or the first maximum.

    Examples
    --------
    >>> import fastce
    >>> found = fastce.row_statistics([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]], [2, 2])
    >>> found.argmax, found.rank, found.margin
    (array([1, 2]), array([1, 0]), array([-1.,  5.]))
    >>> found.loss.round(4), found.entropy.round(4), found.target_probability.round(4)
    (array([1.4076, 0.0134]), array([0.8324, 0.0799]), array([0.2447, 0.9867]))
    >>> fastce.row_statistics([[1.0, 3.0, 2.0]], fields="argmax").lse is None
    True
    """
    request = _inputs.statistics_request(logits, target, fields=fields, axis=axis, ignore_index=ignore_index, base=base)
    found = _pipeline.row_statistics(request, backend, num_threads)
    return RowStatistics(*(getattr(found, name) for name in RowStatistics._fields))


def explain(logits: Any, target: Any, **options: Any) -> _pipeline.Explanation:
    """Tell which backend, ISA, kernel and threads a call would get, and why, without doing it.

    Parameters
    ----------
    logits, target
        As for `cross_entropy`; they are validated in the same way, but not read.
    **options
        Those of `cross_entropy`. With one that only `cross_entropy_with_grad` has (``grad_output`` or ``out``, which
        may be None), it is that function's call which is explained.

    Returns
    -------
    Explanation
        A frozen record with ``backend``, ``variant``, ``num_threads``, ``kernel`` and ``reasons``; ``print`` it.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As the call itself would; only labels, sample weights and dense targets are not looked at.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> plan = fastce.explain(np.zeros((32, 10), np.float32), np.zeros(32, int), backend="numpy")
    >>> plan.backend, plan.variant, plan.num_threads
    ('numpy', 'reference', 1)
    >>> print(plan.reasons[0])
    backend: named in the call
    """
    backend, num_threads = options.pop("backend", "auto"), options.pop("num_threads", None)
    like = cross_entropy_with_grad if options.keys() & {"grad_output", "out"} else cross_entropy
    defaults = dict(like.__kwdefaults__ or {})
    del defaults["backend"], defaults["num_threads"]
    if unknown := options.keys() - defaults.keys():
        raise TypeError(f"explain: {like.__name__} has no option {', '.join(sorted(unknown))}")
    gradient = like is cross_entropy_with_grad
    request = _inputs.loss_request(logits, target, **{**defaults, **options}, gradient=gradient)
    return _pipeline.explain(request, backend, num_threads)
