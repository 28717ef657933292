"""The study on real data, `python -m benchmarks.study`, and the micro-benchmarks."""
