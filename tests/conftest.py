import os

# Before anything imports Triton: its kernels run in the interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Results are judged by the errors of plain PyTorch, and the golden vectors were made by the generic
# code of MKL. So that a pass here is a pass everywhere, the libraries take the same code on every
# x86 machine, whatever instructions it has on top; our own kernels take the best of the machine.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
