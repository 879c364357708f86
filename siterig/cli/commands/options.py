"""Options that several commands share, and the way from a command to the running rig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siterig.blockfs.core.fault_decisions import SEED_MAX
from siterig.cli import completion, output
from siterig.cli.light_commands import running
from siterig.core import fuse_options
from siterig.core.fuse_options import FuseOptions
from siterig.core.paths import default_dir

if TYPE_CHECKING:
    from siterig.azure_emu.vault.model.api import VaultApi

Dir = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="SITERIG_DIR",
        default_factory=default_dir,
        show_default="~/.local/state/siterig",
        file_okay=False,
        help="State folder of the rig.",
    ),
]
AccountAuthority = Annotated[
    Path | None,
    typer.Option(
        "--account-authority",
        metavar="FILE",
        dir_okay=False,
        help="PEM file with the authority of the account's certificate; default: those of the system.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", is_eager=True, callback=output.set_json, help="Print JSON."),
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", is_eager=True, callback=output.set_json, help="Print one JSON document per line."),
]
VmName = Annotated[str, typer.Argument(metavar="VM", help="Name of the VM.", autocompletion=completion.vms)]
POINTS = "latest, latest-processed, latest-app, the id or name of a point, @POSITION, or a time (RFC 3339)"
"""The forms of a selector, in the help of every option that takes one."""
Point = Annotated[str, typer.Option("--point", metavar="POINT", help=f"{POINTS}.", autocompletion=completion.points)]

THREADS, QUEUE = str(FuseOptions().threads), str(FuseOptions().queue)
"""The defaults of the FUSE server, as text."""

PortableFuse = Annotated[
    bool,
    typer.Option(
        fuse_options.PORTABLE_OPTION,
        help="Serve disks with pyfuse3 only, without threads in C: slower, for machines where those fail.",
    ),
]
FuseThreads = Annotated[
    str, typer.Option(fuse_options.THREADS_OPTION, metavar="N", help="Number of threads in C that read disk requests.")
]
FuseQueue = Annotated[
    str,
    typer.Option(
        fuse_options.QUEUE_OPTION, metavar="N", help="Maximum background FUSE requests: read-ahead, asynchronous direct I/O."
    ),
]


def seed_option(text: str) -> Any:
    """Return the option ``--seed`` with this help."""
    return typer.Option("--seed", metavar="N", min=0, max=SEED_MAX, help=text)


def fuse_options_of(threads: str, queue: str, *, portable: bool) -> FuseOptions:
    """Parse the values of these options; raise ``InvalidLimit`` if one is not allowed."""
    return FuseOptions.parse({fuse_options.THREADS_OPTION: threads, fuse_options.QUEUE_OPTION: queue}, portable=portable)


def example(text: str) -> str:
    """Return the last line of the help of a command."""
    return f"Example: {text}"


def vault(folder: Path) -> VaultApi:
    """Return the connection to the vault of a rig that is up."""
    from siterig.rpc import directory

    return directory.vault(running(folder))
