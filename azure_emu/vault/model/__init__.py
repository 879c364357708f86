"""The vault's public models and operations, and the bounds of waits.

Imports azure_emu.contracts, blockfs.contracts, blockfs.core.
"""
