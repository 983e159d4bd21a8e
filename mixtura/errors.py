"""The one error class that ends a command in a clear line instead of a traceback."""


class UserError(ValueError):
    """Bad input from outside: the message says what was expected, what came, and what to do.

    The command line prints it as one line and exits with code 2; a library user catches it as a `ValueError`.

    Example:
        >>> raise UserError("expected at least one file in 'texts', got an empty folder; put .txt files there")
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected at least one file in 'texts', got an empty folder; put .txt files there
    """
