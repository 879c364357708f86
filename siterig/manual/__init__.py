"""The reference page of each command, as Markdown for docs/reference and as a manual page.

Imports blockfs.core.
"""
