"""The director of a rig's faults: rules, windows, and the injectors of every layer.

Imports azure_emu.contracts, azure_emu.vault.model, blockfs.clocks, blockfs.contracts, blockfs.core, blockfs.documents,
blockfs.files, blockfs.guests, scenarios.faults, siterig.core.
"""
