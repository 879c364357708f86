"""The servers that the benchmarks start: peers, and disks of this project."""
