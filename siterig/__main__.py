"""The program ``siterig``: its commands take a moment to load, and Ctrl-C in that moment is no bug to show."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130
"""The same as ``ExitStatus.INTERRUPTED``, which is not imported before the commands are loaded."""


def main() -> None:
    """Load the commands, and run the requested one."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know fewer characters than a name has
    gc.disable()  # it finds nothing in modules that are being loaded
    try:
        app = _load(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("siterig: interrupted\n")
        sys.exit(INTERRUPTED)
    gc.freeze()
    gc.enable()
    app()


def _load(words: list[str]) -> Callable[[], object]:
    if shell := os.environ.get("_SITERIG_COMPLETE"):
        from siterig.cli.completion import answer  # noqa: PLC0415

        return lambda: answer(shell, words)
    # --version is answered without what parses options: that takes longer to load than all the rest.
    if "--version" in words and set(words) <= {"--version", "--json"}:
        from siterig.cli.provenance import print_versions  # noqa: PLC0415

        return lambda: print_versions(as_json="--json" in words)
    from siterig.cli.light_commands import light_command  # noqa: PLC0415

    if (light := light_command(words)) is not None:
        return light
    from siterig.cli.app import program  # noqa: PLC0415

    return program(words)


if __name__ == "__main__":
    main()
