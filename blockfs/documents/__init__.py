"""Documents that users write: TOML files, quantities with units, and problems that name key, value and what is allowed.

Imports blockfs.core.
"""
