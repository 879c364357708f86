"""Contracts between the roles of the recovery side.

Imports blockfs.changelog, blockfs.core, blockfs.images, blockfs.transfer.
"""
