"""The command line: program, output, completion, doctor.

Imports azure_emu.contracts, azure_emu.storage, azure_emu.vault.context, azure_emu.vault.model, blockfs.clocks,
blockfs.contracts, blockfs.core, blockfs.files, scenarios.faults, siterig.core, siterig.images, siterig.rpc.
"""
