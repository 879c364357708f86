"""The authority of the vault: it issues certificates, and keeps the register of them.

Imports azure_emu.contracts, blockfs.core, blockfs.files, blockfs.sides, blockfs.trust.
"""
