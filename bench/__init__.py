"""Benchmarks for those who work on fastce, over the cases and systems of fastce/_bench.

`python -m bench` compares the systems in interleaved rounds, as a table of ratios; `pytest bench` runs the same cases
under pytest-benchmark. No part of the installed package.
"""
