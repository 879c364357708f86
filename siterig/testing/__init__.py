"""A rig of its own for tests and benches.

Imports azure_emu.vault.model, blockfs.changelog, blockfs.contracts, blockfs.core, scenarios.contracts, siterig.cli,
siterig.core, siterig.rpc, siterig.supervisor.
"""
