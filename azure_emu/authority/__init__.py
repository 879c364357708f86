"""The authority of the vault: it issues certificates, and keeps the register of them.

Imports blockfs.core, blockfs.files, blockfs.trust.
"""
