"""Log lines of a command that does a role's work (``siterig mount``): each is a note to its user."""

from __future__ import annotations

import structlog

from siterig.cli import output


def log_as_notes(level: int) -> None:
    """Report log lines of ``level`` and above with :func:`siterig.cli.output.notice`."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, _report],
    )


def _report(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    text = str(event.pop("event")).replace("_", " ")
    traceback = event.pop("exception", None)
    details = ", ".join(f"{key} {value}" for key, value in event.items())
    output.notice(f"{text} ({details})" if details else text)
    if traceback is not None:
        output.foreign(str(traceback).encode(errors="surrogateescape"))
    raise structlog.DropEvent
