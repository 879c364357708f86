"""The program ``siterig``: its commands take a moment to load, and Ctrl-C in that moment is no bug to show."""

from __future__ import annotations

import io
import sys

INTERRUPTED = 130
"""The same as in siterig.exits, whose imports are part of what takes the moment."""


def main() -> None:
    """Load the commands, and run the requested one."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know fewer characters than a name has
    try:
        from siterig.cli import program  # noqa: PLC0415

        app = program(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("siterig: interrupted\n")
        sys.exit(INTERRUPTED)
    app()


if __name__ == "__main__":
    main()
