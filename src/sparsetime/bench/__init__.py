"""Benchmarks against the fastest dense runtimes. What is measured, and how, stands in docs/benchmarks.md."""
