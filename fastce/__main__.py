"""``python -m fastce`` is the command ``fastce``."""

from __future__ import annotations

from fastce._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
