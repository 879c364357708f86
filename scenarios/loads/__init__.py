"""The workloads of scenarios, each with its check.

Imports blockfs.core, blockfs.files, scenarios.checks, scenarios.contracts, scenarios.files, scenarios.workloads.
"""
