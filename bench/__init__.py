"""Benchmarks: side by side in one run, printing ratios.  Results and commands: bench/RESULTS.md."""
