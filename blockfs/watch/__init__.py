"""Changes of a disk's own files by other programs: by inotify while they are open, by stamps between two openings.

Imports blockfs.core, blockfs.files, cext.
"""
