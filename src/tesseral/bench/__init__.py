"""Benchmarks: what is measured, against whom, and what must hold; README.md says how.

One folder for each benchmark. What they share lies here: how calls are timed, what the machine
could do at most, and how much memory a call takes.
"""
