"""What the library does on real data, and how fast. Run `python -m benchmarks.study`."""
