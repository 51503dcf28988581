"""Files that appear under their name when they are complete, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastce._cli._console import CommandError


def output_path(option: str, name: str, inputs: Sequence[Path]) -> Path:
    """Return where a link leads; refuse what must not be replaced by a file."""
    path = Path(name).resolve()
    if path.exists():
        if not path.is_file():
            raise CommandError(f"{option} {name}: exists and is not a regular file")
        if any(path.samefile(other) for other in inputs):
            raise CommandError(f"{option} {name}: is one of the inputs")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside the path, and put it in its place when it is complete; else leave nothing."""
    temporary = path.with_name(f".fastce-{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
