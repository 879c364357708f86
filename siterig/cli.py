"""The command line ``siterig``; docs/cli.md documents every command, the JSON and the exit statuses."""

from __future__ import annotations

import typer

from siterig.commands import drill, operations, records, rig, vms

app = typer.Typer(
    name="siterig",
    help="A test rig for site recovery: virtual disks, replication, failover and failback on one Linux machine.",
    epilog="Example: siterig drill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for subject in (rig, vms, operations, records, drill):
    subject.register(app)


def main() -> None:
    """Entry point of the ``siterig`` program."""
    app()


if __name__ == "__main__":
    main()
