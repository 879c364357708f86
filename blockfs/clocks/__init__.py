"""The controlled clock of a rig: its page, its terms, and the clock of a role that follows it.

Imports blockfs.core, blockfs.files, blockfs.watch, cext.
"""
