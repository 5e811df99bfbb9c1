"""Benchmarks against other tools, one module each, run by jobs/benchmark.py."""
