"""Benchmarks of fastce: one list of cases, one list of systems, every timing checked before it counts.

`python -m bench` compares the systems in interleaved rounds; `pytest bench` runs the same cases under
pytest-benchmark. No part of the installed package.
"""
