"""``python -m bitdance_kernels``: the environment report."""

import os
import sys

from bitdance_kernels.env_report import main

try:
    status = main()
    sys.stdout.flush()
except BrokenPipeError:  # as of `python -m bitdance_kernels | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
    status = 141
sys.exit(status)
