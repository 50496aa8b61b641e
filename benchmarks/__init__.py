"""How fast versolog is, beside what the same machine does without it. Run as `python -m benchmarks`."""
