"""The recovery side: Azurite, managed disks, the applier, the vault. Its rooms import ``blockfs`` and ``cext``.

Imports no other room.
"""
