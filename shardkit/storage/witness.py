"""Finds out whether a store refuses one object, which is the object's fault, or all of them, which is not.

Another object of the same input decides: one that was read before or, if none was, some from all over the input.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, TypeVar

from shardkit.errors import ObjectRefused, StorageError
from shardkit.storage.refusals import EXPIRED, ODD, OWNER, THROTTLED, UNREACHABLE, Denied, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.storage.places import Places

T = TypeVar("T")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # errors of writing a file here
NEVER_ONE_OBJECTS = {EXPIRED, THROTTLED, UNREACHABLE}


class Witness:
    """Checks that other objects of an input can be read; ``readable`` is the last one that could be.

    ``others`` returns some objects of the input, which are tried as long as none has been read.
    """

    def __init__(self, source: Places, others: Callable[[], Sequence[str]]) -> None:
        self._source = source
        self._others = others
        self.readable: str | None = None

    def excuse(self, error: StorageError, again: Callable[[], T]) -> T:
        """Say who is to blame for an object that could not be read; ``again`` reads it once more.

        Returns what that gives, if it can be read by now.

        Raises:
            ObjectRefused: the object is to blame, because others can be read right now.
            StorageError: the error itself, because no object can be read.
        """
        if isinstance(error, ObjectRefused):
            raise error
        if isinstance(error, Unanswered) and error.kind in NEVER_ONE_OBJECTS:
            raise error
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM:
            raise error
        if not self._sees_another():
            raise error
        try:
            return again()  # a failure of the whole store may have ended just now
        except ObjectRefused:
            raise
        except StorageError as still:
            if isinstance(still, Unanswered) and still.kind in NEVER_ONE_OBJECTS:
                raise
            cure = OWNER if isinstance(still, Denied) else ODD
            message = f"{still.message} The object {cure.problem}."
            raise ObjectRefused(message, hint=still.hint if "kms:" in still.hint else cure.hint) from None

    def _sees_another(self) -> bool:
        if self.readable is not None and self._reads(self.readable):
            return True
        return any(self._reads(key) for key in self._others())

    def _reads(self, key: str) -> bool:
        """Whether an object can be read now; an empty one proves nothing."""
        with contextlib.suppress(StorageError, FileNotFoundError):
            return len(self._source.read_range(key, 0, 1)) == 1
        return False
