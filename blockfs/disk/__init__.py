"""One virtual disk: its files and state, tracking, snapshot, hydration, identity and reports.

Imports blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.files, blockfs.guests, blockfs.images,
blockfs.layers, blockfs.watch, cext.
"""
