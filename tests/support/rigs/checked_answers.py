"""A check of the vault's kept answers: each one is compared with a fresh one whenever it would be used."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import Base


def check_answers(monkeypatch: pytest.MonkeyPatch) -> list[Hashable]:
    """Compare all kept answers from now on; return the list of the questions whose kept answer was compared."""
    compared: list[Hashable] = []

    async def known(database: VaultDatabase, key: Hashable, question: Callable[[Session], Any]) -> Any:
        def both(session: Session) -> Any:
            fresh, kept = question(session), database._answers.get(key)  # noqa: SLF001 (a wrong answer is seen only here)
            if kept is not None:
                assert plain(kept.value) == plain(fresh), key
                compared.append(key)
            return fresh

        return await database._run(both, key)  # noqa: SLF001

    monkeypatch.setattr(VaultDatabase, "known", known)
    return compared


def plain(value: Any) -> Any:
    """Return a value whose rows are replaced by their loaded columns and related rows."""
    if isinstance(value, Base):
        state = inspect(value)
        return {name: plain(each) for name, each in state.dict.items() if not name.startswith("_")}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
