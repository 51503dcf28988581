"""Run as `python child_score.py SECONDS OPTION...`: `fastce score` in small blocks, each of which takes some time.

So it can be ended in the middle. Not a test file: see test_resume.py.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from fastce._cli import _resume, _work, main

if __name__ == "__main__":
    pause = float(sys.argv[1])
    _work.BLOCK_BYTES = 1000
    _work.TASK_BYTES = 3000
    _resume.SAVE_SECONDS = 0.0
    do = _work.Job._do

    def slowly(self: _work.Job, *arguments: Any) -> _work.Found:
        time.sleep(pause)
        return do(self, *arguments)

    _work.Job._do = slowly  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
