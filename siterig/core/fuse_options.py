"""Options of the FUSE server, passed from ``siterig up`` and ``siterig mount`` to the process that serves disks.

Another process receives them as words of its command line, each with its value: ``--fuse-threads=2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from siterig.blockfs.core.errors import Code, RigError
from siterig.cext.fuse_server import QUEUE_MAX, THREADS_MAX, FuseServerOptions

PORTABLE_OPTION = "--portable-fuse"
THREADS_OPTION = "--fuse-threads"
QUEUE_OPTION = "--fuse-queue"
VALUED_OPTIONS = (THREADS_OPTION, QUEUE_OPTION)
OPTIONS = (PORTABLE_OPTION, *VALUED_OPTIONS)

_FUSE_SERVER = FuseServerOptions()


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """Options of the FUSE server of a mount.

    Args:
        portable: pyfuse3 alone answers requests, without the threads in C.
        threads: threads in C that read requests, see :class:`siterig.cext.fuse_server.FuseServerOptions`.
        queue: background requests of the kernel, see the same class.
    """

    portable: bool = False
    threads: int = _FUSE_SERVER.threads
    queue: int = _FUSE_SERVER.queue

    @classmethod
    def parse(cls, options: Mapping[str, str], *, portable: bool) -> FuseOptions:
        """Parse the value of each option.

        Raises:
            RigError: ``InvalidLimit`` names the option, its value and the allowed values.
        """
        return cls(
            portable=portable,
            threads=whole_number(THREADS_OPTION, options, THREADS_MAX),
            queue=whole_number(QUEUE_OPTION, options, QUEUE_MAX),
        )

    @property
    def fuse_server(self) -> FuseServerOptions | None:
        """The options of the FUSE server in C; None if pyfuse3 alone answers requests."""
        return None if self.portable else FuseServerOptions(threads=self.threads, queue=self.queue)

    def words(self) -> list[str]:
        """Return the options as words of a command line, which :meth:`of_words` parses."""
        valued = [f"{THREADS_OPTION}={self.threads}", f"{QUEUE_OPTION}={self.queue}"]
        return [PORTABLE_OPTION, *valued] if self.portable else valued

    @classmethod
    def of_words(cls, words: Iterable[str]) -> FuseOptions:
        """Parse the options from a command line that has all of them, and other words."""
        said = {option: value for option, _, value in (word.partition("=") for word in words) if option in OPTIONS}
        return cls.parse(said, portable=PORTABLE_OPTION in said)


def whole_number(option: str, options: Mapping[str, str], most: int) -> int:
    """Return the value of an option that is a whole number from 1 to ``most``.

    Raises:
        RigError: ``InvalidLimit`` names the option, its value and the allowed values.
    """
    text = options[option]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) else 0
    if not 1 <= number <= most:
        raise RigError(Code.InvalidLimit, f"{option} is {text!r}: it must be a whole number from 1 to {most}")
    return number
