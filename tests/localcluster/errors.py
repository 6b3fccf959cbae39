"""The one exception whose text is meant for the person at the terminal."""


class LauncherError(Exception):
    """Something the user can act on; its text is printed without a traceback."""
