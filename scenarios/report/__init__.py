"""The report of a drill as one HTML page.

Imports blockfs.core, blockfs.files, scenarios.contracts.
"""
