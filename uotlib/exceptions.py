"""Errors and warnings of the library."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run this problem; the message says why."""


class ConvergenceWarning(UserWarning):
    """The solver stopped before the violation reached ``tol``; the message says where it stood."""
