"""Runs of scenarios: a rig, the timeline with its operations and conditions, the expectations, and the cleanup.

Imports azure_emu.user_account, azure_emu.vault.model, blockfs.changelog, blockfs.clocks, blockfs.contracts,
blockfs.core, blockfs.documents, scenarios.checks, scenarios.contracts, scenarios.faults, scenarios.files,
scenarios.loads, scenarios.workloads, siterig.accounts, siterig.core, siterig.rpc, siterig.supervisor, siterig.testing.
"""
