import os

# Before anything imports Triton: its kernels run in the interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
