"""The C core, compiled as one extension module: layers, change log, snapshot, FUSE server, checksums.

Imports no other room.
"""
