"""Compiled kernels on disk, one file each.

Numba's own cache keeps an index per function. It does not notice a change in another module that the function calls,
cannot tell two compilations of one function with different options apart, and fails where it cannot write.
Here the file's name is a digest of all that the code depends on, and whatever goes wrong means: compile again.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import tempfile
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl
from numba.core.serialize import dumps

_SOURCES = (
    "_numba_kernels.py",
    "_numba_lanes.py",
    "_numba_math.py",
    "_numba_pairs.py",
    "_numba_rows.py",
    "_numba_staged.py",
    "_numba_terms.py",
    "_numba_tile.py",
)


def _digest() -> str | None:
    texts = hashlib.sha256()
    try:
        for name in _SOURCES:
            texts.update(Path(__file__).with_name(name).read_bytes())
    except OSError:
        return None
    return texts.hexdigest()


_DIGEST = _digest()
"""Of the kernels' sources as they are imported: a process that outlives an update must not save under its name."""


class Cache:
    """What a Numba dispatcher asks of its cache, in Numba's words.

    Raises
    ------
    OSError, RuntimeError
        Where no folder can be written, or the sources cannot be read.
    """

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        self._store = CompileResultCacheImpl(function)
        self.cache_path = self._store.locator.get_cache_path()
        parts = [numba.__version__, llvmlite.__version__, function.__qualname__, str(sorted(options.items()))]
        if _DIGEST is None:
            raise OSError("the sources of the kernels cannot be read")
        self._dependencies = "\0".join((*parts, _DIGEST))

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return what was saved, or None."""
        try:
            payload = pickle.loads(self._path(signature, context.codegen()).read_bytes())
            context.refresh()
            return self._store.rebuild(context, payload)
        except Exception:  # a damaged file can raise anything
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Save what was compiled, whole or not at all."""
        with contextlib.suppress(OSError):
            self._store.locator.ensure_cache_path()
            path = self._path(signature, result.codegen)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                temporary = Path(file.name)
                try:
                    file.write(dumps(self._store.reduce(result)))
                    file.flush()
                    temporary.replace(path)
                except BaseException:
                    temporary.unlink()
                    raise

    def enable(self) -> None:
        """Do nothing: it is always enabled."""

    def disable(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing: what is outdated is never found."""

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = "\0".join((self._dependencies, str(signature), str(codegen.magic_tuple())))
        return Path(self.cache_path, f"fastce-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc")


def folder(function: Any) -> str | None:
    """Return where the kernels are kept, or None where none can be."""
    try:
        return str(Cache(function, {}).cache_path)
    except (OSError, RuntimeError):
        return None
