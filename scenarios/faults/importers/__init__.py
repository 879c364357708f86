"""Fault files of other tools as rules: LazyFS, Toxiproxy, QEMU blkdebug.

Imports blockfs.core, blockfs.documents, scenarios.faults.
"""
