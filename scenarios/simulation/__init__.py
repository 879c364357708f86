"""The deterministic simulation: the production agents, vault and applier in one process, under faults, from one seed.

Imports azure_emu.contracts, azure_emu.disks, azure_emu.vault.model, blockfs.contracts, blockfs.core, blockfs.disk,
blockfs.host, blockfs.layers, blockfs.sides, blockfs.transfer, scenarios.simulation.rig.
"""
