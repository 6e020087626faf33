"""The errors that a user can fix, and which of them a restart may cure.

The command line prints the message of a `UserError` without a traceback and exits with 1. Any other exception is a defect of
maskloom and keeps its traceback.
"""

import errno

from maskloom.redaction import one_line, shortened


class UserError(ValueError):
    """Bad input. The message says what is wrong, the value, where it stands, and what to do.

    Attributes:
        can_retry: the same command may succeed later, even if nobody changes anything.
    """

    can_retry = False


class PassingFault(UserError):
    """A fault outside the run that may be gone at the next attempt: a port in use, a host that does not answer, a data server
    that is down."""

    can_retry = True


class SaveFailed(UserError):
    """Checkpoints could not be written. Once there is room, the same command resumes from the last good one."""

    can_retry = True


class DataFault(UserError):
    """Data that differs from what was indexed. With `data.on_bad_data: skip` a run skips, counts and lists it.

    The message is one line of bounded length, whatever a name in the corpus holds. A source that cannot be reached is a
    `PassingFault` instead: its data is not bad, so it is never skipped.

    Attributes:
        kind: one of `missing`, `truncated`, `checksum`, `changed`, `tar`, `count`, `utf-8`, `json`, `tokens`.
        shard: URL.
        offset: byte at which the block begins.
        key: key of the sample, if one sample is at fault.
    """

    def __init__(self, message: str, *, kind: str = "", shard: str = "", offset: int = 0, key: str = "") -> None:
        super().__init__(shortened(one_line(message)))
        # pickle restores these from `__dict__`, so the error survives the way from a reader process.
        self.kind, self.shard, self.offset, self.key = kind, shard, offset, key


LASTING = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
}
"""Codes of the system that stay until somebody changes a path, its rights or a setting."""


def restart_may_help(error: BaseException) -> bool:
    """Whether the same command may succeed later, even if nobody changes anything.

    A plain `OSError` without a number comes from a library that refuses its input, such as a path too long for a socket.
    """
    if isinstance(error, UserError):
        return error.can_retry
    if isinstance(error, OSError) and error.errno is None:
        return type(error) is not OSError
    return not (isinstance(error, OSError) and error.errno in LASTING)
