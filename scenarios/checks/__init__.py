"""Checks of a recovered VM.

Imports blockfs.core, scenarios.contracts, scenarios.workloads.
"""
