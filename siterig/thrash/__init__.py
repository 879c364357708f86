"""The thrash: a rig of real parts under load and random faults, and the comparison of all of its recovery points.

Imports azure_emu.vault.model, blockfs.changelog, blockfs.contracts, blockfs.core, scenarios.contracts,
scenarios.faults, scenarios.files, scenarios.loads, scenarios.workloads, siterig.core, siterig.supervisor,
siterig.testing.
"""
