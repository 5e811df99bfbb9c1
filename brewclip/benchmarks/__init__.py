"""Timings against other tools: one file for each benchmark, run by jobs/benchmark.py."""
