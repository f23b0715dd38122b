"""The one error that a user can mend: its message is all that is shown, and the exit code is 2."""


class UserError(Exception):
    """Bad input, found before work begins.

    The message says what was wrong, the value that was got, what would be right and the key or
    command that mends it, in one or two lines. It is printed without a traceback.
    """
