"""Measuring fastce: one list of cases, one list of systems, every timing checked before it counts.

`fastce bench` measures with it on a user's machine; the suites of bench/, in a checkout, take the same cases.
cases.py and family.py say what is measured, ours.py, baseline.py and peers.py who computes it, reference.py what is
right, measure.py how time is taken. Nothing here is imported before a benchmark is asked for.
"""
