"""The end of a program by Ctrl-C, SIGTERM or a closed terminal: all clean up alike."""

from __future__ import annotations

import signal


def listen() -> None:
    """Let SIGTERM and a closed terminal (unless under nohup) clean up like Ctrl-C; call it before trio begins.

    trio takes SIGINT over, so that an interrupt comes only where it is safe.  Another signal has to become one.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with "&" in a script: SIGTERM is ignored, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: signal.raise_signal(signal.SIGINT))


def interrupted(error: BaseException) -> bool:
    """Return True if ``error`` is a Ctrl-C, alone or in a group with errors that followed from it."""
    if isinstance(error, BaseExceptionGroup):
        return any(interrupted(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)
