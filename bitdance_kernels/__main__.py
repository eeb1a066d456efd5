"""``python -m bitdance_kernels``: the environment report."""

import sys

from bitdance_kernels.env_report import main

sys.exit(main())
