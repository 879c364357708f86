"""The states of the rig's roles, as the supervisor reported them last.  Kept in memory only: they are about now."""

from __future__ import annotations

from azure_emu.ports import RoleStatus


class Roles:
    """Changed by the supervisor's reports, read by everything in the vault; all on the trio thread."""

    def __init__(self) -> None:
        self._roles: dict[str, RoleStatus] = {}
        self.heard_ns: int | None = None
        """When the last report came, wall clock; None: there was none since the vault started."""

    def update(self, roles: list[RoleStatus], now_ns: int) -> None:
        """Take the place of all that was known."""
        self._roles = {role.name: role for role in roles}
        self.heard_ns = now_ns

    def all(self) -> list[RoleStatus]:
        """Every role, in the supervisor's order; empty before the first report."""
        return list(self._roles.values())

    def get(self, name: str) -> RoleStatus | None:
        """One role; None if it is not known."""
        return self._roles.get(name)
