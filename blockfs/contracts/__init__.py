"""Contracts of the disk host: its calls, its models and its counters.

Imports blockfs.core, blockfs.images, cext.
"""
