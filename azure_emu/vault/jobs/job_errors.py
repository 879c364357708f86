"""Errors that were found together and end one task."""

from __future__ import annotations

from collections.abc import Sequence

from siterig.blockfs.core.errors import RigError


class CombinedError(RigError):
    """Errors that were found together; a job that ends with them lists each of them.

    As one error it has the code of the first; it is not recoverable, because a repetition does not help all of them.
    """

    def __init__(self, errors: Sequence[RigError]) -> None:
        texts = "; ".join(f"{error.message} ({error.code})" for error in errors)
        super().__init__(errors[0].code, f"{len(errors)} prerequisites are not met: {texts}")
        self.errors = tuple(errors)

    @classmethod
    def of(cls, errors: Sequence[RigError]) -> RigError:
        """Return the only error, or one that stands for all of them."""
        return errors[0] if len(errors) == 1 else cls(errors)


def each_of(error: RigError) -> tuple[RigError, ...]:
    """Return the errors that an error stands for."""
    return error.errors if isinstance(error, CombinedError) else (error,)
