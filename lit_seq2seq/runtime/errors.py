"""The one error that a user can mend."""


class UserError(Exception):
    """A mistake that the user can mend: wrong path, column, option, file or setting.

    The message is one line that says what was expected, what came, and what to change. Command-line entry points print
    it without a traceback and exit with a non-zero status.

    Example:
        >>> try:
        ...     raise UserError("expected a column 'german', but the columns are source, target: set source_column")
        ... except UserError as error:
        ...     print(f"error: {error}")
        error: expected a column 'german', but the columns are source, target: set source_column
    """
