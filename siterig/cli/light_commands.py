"""``siterig status`` and ``siterig vm list`` without typer, trio and the RPC client, which take longer to load than to run.

Only plain command lines are taken here, and only plain answers of the rig: in every other case the complete program runs.
Both ways print the same (tests/unit/siterig/cli/test_startup.py).
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from siterig.blockfs.clocks import quick_look
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import exit_status, output, rig_status
from siterig.core.parsing import format_size
from siterig.core.paths import Layout, check_format, default_dir

VMS_ANSWER_S = 2.0
"""For the list of VMs without the complete client; the vault asks both sides for it."""


def light_command(words: Sequence[str]) -> Callable[[], None] | None:
    """Return the command for a plain command line, or None."""
    for start, work in _COMMANDS.items():
        if tuple(words[: len(start)]) == start:
            options = _options(words[len(start) :])
            return None if options is None else partial(_printed, partial(work, options[0], as_json=options[1]))
    return None


def _options(words: Sequence[str]) -> tuple[Path, bool] | None:
    """The folder of the rig, and whether JSON is requested; None if there are other words."""
    rest, as_json = list(words), False
    folder = os.environ.get("SITERIG_DIR", "")
    while rest:
        word = rest.pop(0)
        if word == "--json" and not as_json:
            as_json = True
        elif word == "--dir" and rest and not rest[0].startswith("-"):
            folder = rest.pop(0)
        elif word.startswith("--dir=") and word != "--dir=":
            folder = word.removeprefix("--dir=")
        else:
            return None
    path = Path(folder) if folder else default_dir()
    with suppress(OSError):
        if path.is_file():
            return None
    return path, output.set_json(as_json)


def _printed(work: Callable[[], None]) -> None:
    """Run ``work`` as typer does it: a reader of the output that has gone is no bug."""
    try:
        with exit_status.reporting():
            work()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at the end must not fail, too
        raise SystemExit(ExitStatus.FAILED) from None


def running(folder: Path) -> Layout:
    """Return the layout of a rig that is up, whose clock the ages of this command count by; ``NotUp``, ``StateVersion``."""
    layout = Layout.of(folder)
    check_format(layout)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(layout.socket("supervisor")))
        except ConnectionRefusedError:
            raise RigError(Code.NotUp, f"the rig in {layout.root} was killed: siterig up or down clears it") from None
        except OSError:
            raise RigError(Code.NotUp, f"the rig in {layout.root} is not up: start it with siterig up") from None
    clock = quick_look.changed_clock(layout.clock)
    output.set_wall_ahead(0 if clock is None else clock.wall_ahead_ns)
    return layout


def list_vms(folder: Path, *, as_json: bool) -> None:
    """Run ``siterig vm list``."""
    from siterig.rpc.light_client import Call, answer

    with exit_status.reporting():
        vms = answer(Call(running(folder).way("cli", "vault"), "VaultApi/list_vms"), VMS_ANSWER_S)
    if vms is None:
        vms = exit_status.run(partial(_vms, folder))
    if as_json:
        output.print_json(vms)
    else:
        rows = [
            (vm["vm"], vm["side"], vm["state"], disk["name"], format_size(disk["size_bytes"]), disk["path"])
            for vm in vms
            for disk in vm["disks"]
        ]
        output.print_table(("VM", "side", "state", "disk", "size", "file"), rows, empty="no VMs: siterig vm create")


async def _vms(folder: Path) -> list[dict[str, Any]]:
    from siterig.rpc import directory

    return [vm.model_dump() for vm in await directory.vault(running(folder)).list_vms()]


def status(folder: Path, *, as_json: bool) -> None:
    """Run ``siterig status``; exits with 1 if a role is not ready or does not answer, otherwise by the worst health."""
    with exit_status.reporting():
        layout = running(folder)
        state = rig_status.light_state(layout)
    if state is None:
        state = exit_status.run(partial(rig_status.rig_state, layout))
    if as_json:
        output.print_json(state.document())
    else:
        output.print_lines(rig_status.lines_of(state))
    if state.problem is not None:
        output.notice(state.problem)
    ended = exit_status.of_health(item["replicationHealth"] for item in state.items)
    if not state.is_ready:
        ended = ExitStatus.FAILED
    if ended is not ExitStatus.OK:
        raise SystemExit(ended)


_COMMANDS: dict[tuple[str, ...], Callable[..., None]] = {("status",): status, ("vm", "list"): list_vms}
