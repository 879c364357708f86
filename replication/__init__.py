"""The site's replication: engine and fabrics. Imports ``blockfs`` and ``cext``.

Imports no other room.
"""
