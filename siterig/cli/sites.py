"""The sites of a rig, and their loss: the mechanism of ``siterig site lose`` and of the drill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.hosts import ROLES_OF_HOST

if TYPE_CHECKING:
    from siterig.azure_emu.contracts.reports import RoleStatus
    from siterig.core.supervisor_contract import RigStatus, SupervisorControl

DEFAULT = "site"
ROLES_OF_SITE = {DEFAULT: ROLES_OF_HOST[DEFAULT]}
"""The roles of each site, in the order of the kill and of the start."""


def _roles(site: str) -> tuple[str, ...]:
    if site not in ROLES_OF_SITE:
        raise RigError(Code.NoSuchSite, f"there is no site {site!r}; there are: {', '.join(ROLES_OF_SITE)}")
    return ROLES_OF_SITE[site]


def check(site: str) -> str:
    """Return the name of a site; ``NoSuchSite`` if there is none of this name."""
    _roles(site)
    return site


def of(rig: RigStatus, site: str) -> list[RoleStatus]:
    """Return the states of the roles of a site."""
    return [role for role in rig.roles if role.name in _roles(site)]


async def lose(supervisor: SupervisorControl, site: str = DEFAULT) -> list[RoleStatus]:
    """Kill all roles of a site with SIGKILL; they stay down.

    Raises:
        RigError: ``NoSuchSite``.
    """
    return [await supervisor.kill_role(name=name, hold=True) for name in _roles(site)]


async def restore(supervisor: SupervisorControl, site: str = DEFAULT) -> list[RoleStatus]:
    """Start them again; returns when they answer.  ``NoSuchSite``, ``RoleFailed``."""
    return [await supervisor.start_role(name=name) for name in _roles(site)]


def lost(held: set[str]) -> list[str]:
    """Return the names of the sites of which every role is held down; ``held`` has the names of these roles."""
    return [site for site, names in ROLES_OF_SITE.items() if held.issuperset(names)]


def way_back(site: str, details: Mapping[str, str]) -> str:
    """Return the command that brings a lost site back.

    Args:
        site: the site.
        details: the reason of each role that is held down, as the supervisor gives it.
    """
    from siterig.cli.power import PowerTarget

    own = PowerTarget.site(site).rule_name
    for role in ROLES_OF_SITE[site]:
        _, by, fault = details[role].partition(" by fault ")
        if by and fault != repr(own):
            return f"siterig fault remove {fault}"
    return f"siterig site restore {site}"
