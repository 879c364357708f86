"""Options that several commands share, and the way from a command to the running rig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
        help="Folder that holds the rig's state.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", is_eager=True, callback=output.set_json, help="Print JSON."),
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", is_eager=True, callback=output.set_json, help="Print one JSON document a line."),
]
VmName = Annotated[str, typer.Argument(metavar="VM", help="Name of the VM.", autocompletion=completion.vms)]
POINTS = "latest, latest-processed, latest-app, the id or name of a point, @POSITION, or a time (RFC 3339)"
"""What may be written for a state, wherever one is chosen."""
Point = Annotated[str, typer.Option("--point", metavar="POINT", help=f"{POINTS}.", autocompletion=completion.points)]

THREADS, QUEUE = str(FuseOptions().threads), str(FuseOptions().queue)
"""As the front end has them where nothing is said."""

PortableFuse = Annotated[
    bool,
    typer.Option(fuse_options.PORTABLE_OPTION, help="Serve disks without C threads: slower, should these fail here."),
]
FuseThreads = Annotated[
    str, typer.Option(fuse_options.THREADS_OPTION, metavar="N", help="How many C threads take requests on disks.")
]
FuseQueue = Annotated[
    str,
    typer.Option(fuse_options.QUEUE_OPTION, metavar="N", help="How many requests the kernel may make ahead of its callers."),
]


def fuse_options_of(threads: str, queue: str, *, portable: bool) -> FuseOptions:
    """From what these options say; ``InvalidLimit``."""
    return FuseOptions.parse({fuse_options.THREADS_OPTION: threads, fuse_options.QUEUE_OPTION: queue}, portable=portable)


def example(text: str) -> str:
    """The last line of a command's help."""
    return f"Example: {text}"


def vault(folder: Path) -> VaultApi:
    """The vault of a rig that is up."""
    from siterig.rpc import directory

    return directory.vault(running(folder))
