"""The processes of the rig: one role by itself, and the loss of a whole site."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.fence_api import Fence
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import completion, exit_status, fault_director, output, power, sites
from siterig.cli.commands.options import Dir, Json, VmName, example, seed_option, vault
from siterig.cli.light_commands import running
from siterig.cli.power import PowerTarget
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc import directory

CREDENTIALS_CHARACTERS_MAX = 1 << 18
"""A vault credentials file that is longer is no such file."""

RoleName = Annotated[
    str,
    typer.Argument(
        metavar="ROLE",
        help="Name of the role, for example agent; siterig role list shows all.",
        autocompletion=completion.roles,
    ),
]


def _sites(incomplete: str) -> list[str]:
    return [name for name in sites.ROLES_OF_SITE if name.startswith(incomplete)]


SiteName = Annotated[
    str,
    typer.Argument(
        metavar="[SITE]",
        help=f"Name of the site: {', '.join(sites.ROLES_OF_SITE)}.",
        autocompletion=_sites,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    role = typer.Typer(no_args_is_help=True)
    role.command("list", epilog=example("siterig role list --json"))(list_roles)
    role.command("restart", epilog=example("siterig role restart agent"))(restart)
    role.command("kill", epilog=example("siterig role kill azurite --hold"))(kill)
    app.add_typer(
        role, name="role", help="List, kill and restart the processes of the rig.", epilog=example("siterig role list")
    )
    site = typer.Typer(no_args_is_help=True)
    site.command("lose", epilog=example("siterig site lose"))(lose)
    site.command("restore", epilog=example("siterig site restore"))(restore)
    site.command("register", epilog=example("siterig site register site.VaultCredentials"))(register_host)
    site.command("fence", epilog=example("siterig site fence web01"))(fence)
    site.command("unfence", epilog=example("siterig site unfence web01"))(unfence)
    app.add_typer(
        site,
        name="site",
        help="Lose a site, and restore it; fence a VM of it; register its host with the vault.",
        epilog=example("siterig site lose"),
    )


async def _supervisor(folder: Path) -> SupervisorControl:
    """Return the supervisor after it has answered: one that hangs would execute the call after the command has ended."""
    supervisor = directory.supervisor(running(folder))
    await supervisor.status()
    return supervisor


def _print(roles: list[RoleStatus], *, as_json: bool) -> None:
    if as_json:
        output.print_json(roles)
        return
    rows = [(r.name, r.state, r.pid or "-", r.restarts, output.age(r.since_ns), r.detail) for r in roles]
    output.print_table(("role", "state", "pid", "restarts", "for", "detail"), rows, empty="no roles")


def list_roles(folder: Dir, as_json: Json = False) -> None:
    """List the roles of the rig with their states; exit status 1 if one is not ready."""

    async def work() -> bool:
        roles = (await directory.supervisor(running(folder)).status()).roles
        _print(roles, as_json=as_json)
        return all(role.state == "ready" for role in roles)

    if not exit_status.run(work):
        raise typer.Exit(ExitStatus.FAILED)


def restart(folder: Dir, name: RoleName, as_json: Json = False) -> None:
    """Restart a role: kill it first if it runs or hangs; start it if it failed or is held down."""

    async def work() -> None:
        supervisor = await _supervisor(folder)
        await supervisor.kill_role(name=name)
        _print([await supervisor.start_role(name=name)], as_json=as_json)

    exit_status.run(work)


def kill(
    folder: Dir,
    name: RoleName,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the role down until siterig role restart.")] = False,
    as_json: Json = False,
) -> None:
    """Kill a role with SIGKILL, like a crash; the supervisor restarts it."""

    async def work() -> None:
        supervisor = await _supervisor(folder)
        _print([await supervisor.kill_role(name=name, hold=hold)], as_json=as_json)

    exit_status.run(work)


def lose(
    folder: Dir,
    site: SiteName = sites.DEFAULT,
    *,
    lose_power: Annotated[
        bool, typer.Option("--power", help="Lose the power of its host: unsynced writes are lost, and its boot ends.")
    ] = False,
    tear: Annotated[bool, typer.Option("--tear", help="With --power: some unsynced writes are torn, too.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="With --power: all unsynced writes are lost, in place of a random part of them.")
    ] = False,
    seed: Annotated[
        int | None,
        seed_option("Seed of the random choices. Default: a random one, which is shown."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="With --power: only keep unsynced writes from now on, for the loss.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Lose a site: kill its processes, and keep them down until siterig site restore."""

    async def work() -> None:
        supervisor = await _supervisor(folder)
        if not lose_power:
            given = {"--tear": tear, "--all": all_, "--prepare": prepare, f"--seed {seed}": seed is not None}
            option = next((name for name, is_given in given.items() if is_given), None)
            if option is not None:
                raise RigError(Code.BadRequest, f"{option}: belongs to --power, which is missing")
            _print(await sites.lose(supervisor, site), as_json=as_json)
            return
        target, extent = PowerTarget.site(sites.check(site)), power.extent_of(tear=tear, all_=all_)
        director = await fault_director.started_director(folder)
        if prepare:
            power.note_seed(await power.prepare(director, target, extent, seed), extent)
        else:
            lost, chosen = await power.lose(director, target, extent, seed)
            output.notice(lost.done)
            power.note_seed(chosen, extent)
        _print(sites.of(await supervisor.status(), site), as_json=as_json)

    exit_status.run(work)


def restore(folder: Dir, site: SiteName = sites.DEFAULT, as_json: Json = False) -> None:
    """Restore a lost site: start its processes, with the disks as they were when it was lost."""

    async def work() -> None:
        supervisor = await _supervisor(folder)
        director = await fault_director.director_if_any(folder)
        name = PowerTarget.site(sites.check(site)).rule_name
        if director is not None and any(rule.name == name for rule in (await director.list_faults()).rules):
            await director.remove_fault(name=name)
        _print(await sites.restore(supervisor, site), as_json=as_json)

    exit_status.run(work)


def register_host(
    folder: Dir,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A vault credentials file.")],
    as_json: Json = False,
) -> None:
    """Register the host of the site with the vault, by a vault credentials file."""

    async def work() -> None:
        from siterig.blockfs.files.os_errors import reason

        setup = directory.host_setup(running(folder))
        try:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(CREDENTIALS_CHARACTERS_MAX)
        except OSError as error:
            raise RigError(Code.BadCredentialsFile, f"a vault credentials file cannot be read: {reason(error)}") from error
        except UnicodeDecodeError as error:
            raise RigError(Code.BadCredentialsFile, f"{file} is no vault credentials file: it is no text") from error
        host = await setup.register(credentials=text)
        if as_json:
            output.print_json({"host": host})
        else:
            output.line(f"the host {host} is registered with the vault")

    exit_status.run(work)


def fence(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Fence a VM at the site: its disks refuse all writes, also after restarts, until siterig site unfence or a failback."""
    _set_fence(folder, lambda api: api.fence_source(vm=vm), as_json=as_json)


def unfence(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Allow writes to the disks of a fenced VM again."""
    _set_fence(folder, lambda api: api.unfence_source(vm=vm), as_json=as_json)


def _set_fence(folder: Path, call: Callable[[VaultApi], Awaitable[Fence]], *, as_json: bool) -> None:
    async def work() -> None:
        done = await call(vault(folder))
        if as_json:
            output.print_json(done)
        else:
            text = "refuse all writes" if done.fenced else "accept writes"
            output.line(f"the disks of VM {done.vm!r} at the site {text}: {', '.join(done.disks)}")

    exit_status.run(work)
