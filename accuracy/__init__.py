"""The published accuracy: one table of limits and of what was measured beside them.

`table.json` is the table. Its limits are set by hand: the tests hold them (`tests/tolerances.py` reads them from
there), the documents show them. `python -m accuracy` measures, rewrites only the measured figures and the documents,
and fails above a limit: the functions of the C core by a sweep in C (`functions.py`, `sweep.c`), losses and gradients
of every backend and of other systems on one set of cases (`results.py`, `cases.py`, `systems.py`).
"""
