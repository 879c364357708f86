"""The vault's database: schema, transactions, migrations, notifications.

Imports blockfs.core, blockfs.files.
"""
