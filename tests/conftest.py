import os

# Before anything imports Triton: its kernels run in the interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"
# The golden vectors were made where MKL takes its generic code. On Intel processors it has code of
# its own, whose exponentials may differ in the last bit; at angles of up to 1000 this is seen.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
