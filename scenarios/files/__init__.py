"""Scenario files: the schema of topology, workloads, timeline, conditions and expectations, and the library.

Imports blockfs.contracts, blockfs.core, blockfs.documents, scenarios.faults.
"""
