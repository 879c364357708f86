"""The vault's public models and operations, and the bounds of waits.

Imports blockfs.contracts, blockfs.core, blockfs.images.
"""
