"""``python -m bitdance``: the command line."""

import sys

from bitdance.cli import main

sys.exit(main())
