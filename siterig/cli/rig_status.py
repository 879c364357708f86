"""The state that ``siterig status`` shows: roles, VMs and protected items, in their JSON forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from siterig.blockfs.clocks import quick_look
from siterig.cli import output, sites
from siterig.cli.tables import Line
from siterig.core.paths import Layout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from siterig.blockfs.core.wire_model import WireModel

VAULT_ANSWER_S = 1.5
"""For each list of the vault: the state of the roles does not wait for it."""
LIGHT_ANSWER_S = 0.5
"""For the first attempt, without the complete client."""
VAULT_LISTS = {"list_vms": "VMs", "items": "protected items", "managed_disks": "managed disks"}
"""Methods of the vault, and the words for what they list."""

Document = Mapping[str, Any]
"""A model of the rig in its JSON form."""


@dataclass(frozen=True, slots=True)
class RigState:
    """All that ``status`` shows.

    Args:
        rig: the supervisor and its roles.
        vms: the VMs of both sides.
        items: the protected items.
        problem: the reason why a list of the vault is missing.
        clock: the clock of the rig; None if it is the system's.
    """

    rig: Document
    vms: Sequence[Document]
    items: Sequence[Document]
    problem: str | None = None
    clock: Document | None = None

    @property
    def is_ready(self) -> bool:
        """True if every role is ready and the vault answered."""
        return self.problem is None and all(role["state"] == "ready" for role in self.rig["roles"])

    def document(self) -> dict[str, object]:
        """Return the JSON document of the command."""
        return {**self.rig, "clock": self.clock, "vms": self.vms, "items": self.items}


def light_state(layout: Layout) -> RigState | None:
    """Return the state, without the libraries of the complete client; None if it is not answered at once."""
    from siterig.rpc.light_client import Call, answers

    calls = [Call(layout.way("cli", "vault"), f"VaultApi/{method}") for method in VAULT_LISTS]
    found = answers([*calls, Call(layout.socket("supervisor"), "SupervisorControl/status")], LIGHT_ANSWER_S)
    if found is None:
        return None
    vms, items, managed, rig = found
    return RigState(with_disk_names(rig, managed), vms, items, clock=_clock(layout))


async def rig_state(layout: Layout) -> RigState:
    """Return the state; all lists are requested at the same time, because a role that hangs must not delay the others."""
    import trio

    from siterig.blockfs.core.errors import RigError
    from siterig.rpc import directory

    vault = directory.vault(layout)
    lists: dict[str, list[dict[str, Any]]] = {method: [] for method in VAULT_LISTS}
    rig: dict[str, Any] = {}
    problems: list[str] = []

    async def ask_supervisor() -> None:
        rig.update((await directory.supervisor(layout).status()).model_dump())

    async def ask_vault(method: str, list_all: Callable[[], Awaitable[Sequence[WireModel]]]) -> None:
        what = VAULT_LISTS[method]
        problem = f"the vault did not give the list of {what} within {VAULT_ANSWER_S:g} s (RoleUnavailable)"
        with trio.move_on_after(VAULT_ANSWER_S):
            try:
                lists[method] = [model.model_dump() for model in await list_all()]
            except RigError as error:
                problem = f"{error.message} ({error.code})"
            else:
                return
        problems.append(problem)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_supervisor)
        nursery.start_soon(ask_vault, "list_vms", vault.list_vms)
        nursery.start_soon(ask_vault, "items", vault.items)
        nursery.start_soon(ask_vault, "managed_disks", vault.managed_disks)
    named = with_disk_names(rig, lists["managed_disks"])
    return RigState(named, lists["list_vms"], lists["items"], problems[0] if problems else None, _clock(layout))


def _clock(layout: Layout) -> Document | None:
    state = quick_look.changed_clock(layout.clock)
    return None if state is None else quick_look.document_of(state)


def with_disk_names(rig: Document, managed: Sequence[Document]) -> Document:
    """Return the rig, with VM and name of each disk that a role knows by the id of the managed disk only."""
    known = {disk["disk_id"]: {"vm": disk["vm"], "disk": disk["name"]} for disk in managed}
    roles = [
        {**role, "waits": [{**wait, **known.get(wait["disk"] or "", {})} for wait in role["waits"]]} for role in rig["roles"]
    ]
    return {**rig, "roles": roles}


def lines_of(state: RigState) -> list[Line]:
    """Narrow tables, and below each a line for everything that needs words: why a role is not ready, what a VM lacks."""
    rig, roles = state.rig, state.rig["roles"]
    lines: list[Line] = [f"rig in {rig['folder']}, supervisor {rig['pid']}"]
    if state.clock is not None:
        lines += output.detail("clock", quick_look.words_of(state.clock))
    lines.append("")
    rows = [(role["name"], role["state"], role["pid"] or "-", role["restarts"]) for role in roles]
    lines += output.table(("role", "state", "pid", "restarts"), rows)
    held = {role["name"]: role["detail"] for role in roles if role["state"] == "held"}
    lines += [f"site {name} is lost: {sites.way_back(name, held)} brings it back" for name in sites.lost(set(held))]
    if rig.get("faults"):
        count = rig["faults"]
        lines += output.detail("faults", f"{count} fault rule{'s are' if count != 1 else ' is'} armed: siterig fault list")
    for role in roles:
        if role["detail"]:
            lines += output.detail(role["name"], role["detail"])
        for wait in role["waits"]:
            lines += output.detail(role["name"], _wait_text(wait))
    if state.vms:
        lines += ["", *output.table(("VM", "side", "state"), [(vm["vm"], vm["side"], vm["state"]) for vm in state.vms])]
    if state.items:
        columns = ("protected", "state", "health", "RPO", "applied", "point", "active")
        lines += ["", *output.table(columns, [_item_row(item) for item in state.items])]
        for item in state.items:
            for problem in [*_problems(item), *_remarks(item)]:
                lines += output.detail(item["vm"], problem)
    return lines


def _wait_text(wait: Document) -> str:
    vm, disk = wait["vm"], wait["disk"]
    of = ""
    if vm is not None:
        of = f" ({vm})" if disk is None else f" ({vm}/{disk})"
    elif disk is not None:
        of = f" (disk {disk})"
    return f"waiting for {output.age(wait['since_ns'])}{of}: {wait['reason']} ({wait['code']})"


def _item_row(item: Document) -> tuple[str, ...]:
    times = (item["lastRpoInSeconds"], item["applied_lag_s"], item["newest_point_age_s"])
    shown = ("-" if seconds is None else f"{seconds:.0f} s" for seconds in times)
    return (item["vm"], item["protectionState"], item["replicationHealth"], *shown, item["activeLocation"])


def _problems(item: Document) -> list[str]:
    reason = item["resynchronizationRequired"]
    resync = [f"resync required: {reason}"] if reason else []
    return resync + [f"{error['summaryMessage']} ({error['errorCode']})" for error in item["healthErrors"]]


def _remarks(item: Document) -> list[str]:
    remarks = []
    if count := item["pinned_points"]:
        remarks.append(f"{count} pinned recovery point{'s' if count != 1 else ''}: siterig points {item['vm']}")
    if count := len(item["acknowledged_errors"]):
        remarks.append(f"{count} acknowledged health error{'s' if count != 1 else ''}: siterig error list")
    return remarks
