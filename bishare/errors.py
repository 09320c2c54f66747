"""The one exception for a user's mistake: the command line prints it as a single line, without a traceback."""


class UserError(ValueError):
    """Bad input: the message says what was given, what is wanted and what to try."""
