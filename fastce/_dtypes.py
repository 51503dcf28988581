"""The one list of dtypes that logits, gradients and probabilities may have.

bfloat16 is not NumPy's own: it is ``ml_dtypes.bfloat16``, recognised when somebody else has imported that
package and imported here only when it is asked for.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

DType = np.dtype[Any]

LOGITS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
"""NumPy's name of each dtype, and the C core's."""

ACCEPTED = "float16, bfloat16, float32 or float64"

_BY_TYPE: dict[type, str] = {getattr(np, name): name for name in LOGITS if name != "bfloat16"}


def name_of(dtype: DType) -> str | None:
    """Return the name in LOGITS of a dtype in either byte order, or None where it is not in the list."""
    name = _BY_TYPE.get(dtype.type)
    if name is None and (module := sys.modules.get("ml_dtypes")) is not None and dtype.type is module.bfloat16:
        name = _BY_TYPE[dtype.type] = "bfloat16"
    return name


def is_real(dtype: DType) -> bool:
    """Tell whether a dtype may hold weights and dense targets: boolean, integer, or one of LOGITS."""
    return dtype.kind in "biu" or name_of(dtype) is not None


def spacing(dtype: DType) -> float:
    """Return the distance from 1 to the next number of a dtype of weights and dense targets; 0 for integers."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}.get(
        name_of(dtype) or "", 0.0
    )


def named(name: str) -> DType:
    """Return the dtype of a name in LOGITS.

    Raises
    ------
    ImportError
        For bfloat16 where ml_dtypes is not installed.
    """
    if name == "bfloat16":
        import ml_dtypes

        dtype: DType = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


def available() -> list[str]:
    """Return the names in LOGITS that this Python can make arrays of."""
    try:
        named("bfloat16")
    except ImportError:
        return [name for name in LOGITS if name != "bfloat16"]
    return list(LOGITS)
