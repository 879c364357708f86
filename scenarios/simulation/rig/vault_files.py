"""Quick starts of the vault: an empty database is copied, and the compiled statements are shared between all vaults.

Without both, the half of a short run would be the work of SQLAlchemy at the start of a vault.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine, create_engine

from siterig.azure_emu.vault.db.database import VaultDatabase

_compiled: dict[object, object] = {}


@cache
def _first() -> Engine:
    engine = create_engine("sqlite://")
    with engine.connect():
        pass  # the dialect is complete from the first connection on
    engine.dispose()
    return engine


@cache
def _empty_database() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vault.db"
        VaultDatabase(f"sqlite:///{path}").close()
        return path.read_bytes()


def provide_empty(path: Path) -> None:
    """Write an empty database."""
    path.write_bytes(_empty_database())


def engine(path: Path) -> Engine:
    """Return an engine for the database at ``path``."""
    own = create_engine(f"sqlite:///{path}")
    return Engine(own.pool, _first().dialect, own.url, execution_options={"compiled_cache": _compiled})
