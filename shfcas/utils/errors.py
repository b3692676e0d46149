"""Errors that a user can cause and fix; the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """A problem with the input, the models or the machine that the user can fix (exit code 1)."""


class UsageError(UserError):
    """A command, option or configuration key that does not exist or is not valid (exit code 2)."""


class NothingSelected(UserError):
    """No comparison passes a strategy's thresholds."""


class MissingExtra(UserError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'shfcas[{extra}]'")
