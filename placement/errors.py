"""The one error that is the user's to mend."""


class SegueError(ValueError):
    """Bad input: a file, a name or a value that the user can correct.

    The message is one line that names the thing, the value, and what would be right. The command line prints it
    and exits with code 2; nothing else is expected to catch it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
