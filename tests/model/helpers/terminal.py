"""Terminals to look at."""

import fcntl
import io
import os
import pty
import struct
import termios


class Terminal(io.StringIO):
    """What is written to it, as text."""

    def isatty(self):
        return True


def open_terminal():
    """Both ends of a terminal: what reads what it shows, and what programs write to."""
    shown, written = pty.openpty()
    fcntl.ioctl(shown, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # not 0 x 0
    return shown, written


def read_rest(descriptor):
    """What programs write to a terminal until the last of them ends; closes its other end."""
    shown = b""
    try:
        while part := os.read(descriptor, 4096):
            shown += part
    except OSError:  # Linux says so that nobody has the terminal any more
        pass
    os.close(descriptor)
    return shown
