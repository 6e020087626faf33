"""The one error class for what a user can fix.

The command line prints its message without a traceback and exits with 1. Everything else that is raised is a defect of
ours and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input: the message says what, the offending value, where, and what to do."""
