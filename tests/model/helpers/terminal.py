"""A terminal to look at."""

import io


class Terminal(io.StringIO):
    """What is written to it, as text."""

    def isatty(self):
        return True
