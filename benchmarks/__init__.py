"""Benchmarks that take minutes; their results lie in ``benchmarks/results``."""
