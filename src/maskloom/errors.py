"""The error class for what a user can fix, and the kind of it that is in the data.

The command line prints its message without a traceback and exits with 1. Everything else that is raised is a defect of
ours and keeps its traceback.
"""

import errno

from maskloom.redaction import one_line, shortened


class UserError(ValueError):
    """Bad input: the message says what, the offending value, where, and what to do.

    Attributes:
        can_retry: whether the same command may succeed later although nobody corrected anything.
    """

    can_retry = False


class PassingFault(UserError):
    """Something around the run stands in the way, and may be gone at the next attempt: a port that is taken, a host that does
    not answer, a data server that is down."""

    can_retry = True


class SaveFailed(UserError):
    """Checkpoints could not be written: once there is room, the same command goes on from the last good one."""

    can_retry = True


class DataFault(UserError):
    """Data that is not what was indexed; under `data.on_bad_data: skip` it is passed over, counted and listed. Its message is one
    line of a bounded length, whatever a name in the corpus holds.

    A source that cannot be reached at the moment is a `PassingFault`: nothing of it is bad, so it is never skipped.

    Attributes:
        kind: one word a fault: `missing`, `truncated`, `checksum`, `changed`, `tar`, `count`, `utf-8`, `json`, `tokens`.
        shard: URL.
        offset: byte at which the block begins.
        key: of the sample, where one is at fault.
    """

    def __init__(self, message: str, *, kind: str = "", shard: str = "", offset: int = 0, key: str = "") -> None:
        super().__init__(
            shortened(one_line(message))
        )  # the attributes travel between processes with the instance's dictionary
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
"""What the system answers as long as nobody changes a path, its rights or a setting."""


def restart_may_help(error: BaseException) -> bool:
    """Whether the same command may succeed later although nobody corrected anything.

    A plain `OSError` without a number is a library's word on what it was given, such as a path that is too long for a socket.
    """
    if isinstance(error, UserError):
        return error.can_retry
    if isinstance(error, OSError) and error.errno is None:
        return type(error) is not OSError
    return not (isinstance(error, OSError) and error.errno in LASTING)
