"""Exit statuses of the command line: stable, documented in docs/reference/command-line.md."""

from __future__ import annotations

OK, FAILED, BAD_INPUT, NOT_UP, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 4, 130
