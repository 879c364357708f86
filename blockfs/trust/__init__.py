"""Certificates of the links between the sides: their holders, identity files, TLS settings, and requests to the authority.

Imports blockfs.core, blockfs.files.
"""
