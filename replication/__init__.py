"""The site's replication: engine and fabrics. Its rooms import ``blockfs`` and ``cext``.

Imports no other room.
"""
