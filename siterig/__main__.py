"""The program ``siterig``: its commands take a moment to load, and Ctrl-C in that moment is no bug to show."""

from __future__ import annotations

import io
import sys

INTERRUPTED = 130
"""As siterig.exits has it, whose imports are part of what takes the moment."""


def main() -> None:
    """Load the commands, and run the one that is asked for."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes, and is printed as it is
    try:
        from siterig.cli import program  # noqa: PLC0415

        app = program(sys.argv[1:])
    except KeyboardInterrupt:
        print("siterig: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    app()


if __name__ == "__main__":
    main()
