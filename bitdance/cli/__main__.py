"""``python -m bitdance.cli``."""

import sys

from bitdance.cli import run

if __name__ == "__main__":
    sys.exit(run())
