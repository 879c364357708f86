"""Alembic's entry: runs the migrations on the connection, and in the transaction, of the caller (see the package)."""

from __future__ import annotations

from alembic import context

from siterig.azure_emu.vault.db.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
