"""The one error that a user can mend, and what to install."""


class UserError(Exception):
    """A mistake that the user can mend: wrong path, column, option, file or setting.

    The message is one line that says what was expected, what came, and what to change. Command-line entry points print
    it without a traceback and exit with a non-zero status.
    """


def install(extra: str) -> str:
    """Say how to install the packages of an extra."""
    return f'in your clone of lit_seq2seq, run pip install -e ".[{extra}]"'
