"""The recovery side: Azurite, managed disks, the applier, the vault. Imports ``blockfs`` and ``cext``.

Imports no other room.
"""
