"""The vault's database: schema, transactions, migrations, notifications.

Imports azure_emu.contracts, blockfs.core, blockfs.files.
"""
