"""What ends the demo before its report."""


class DemoError(Exception):
    """The demo could not be played to its end. The message is for the person who ran it."""
