"""Processes that start with everything imported, which saves the seconds of importing torch."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

READY = multiprocessing.get_context("forkserver")
# With the imports of an optimizer. One server serves all test files of a worker.
READY.set_forkserver_preload([
    "bitdance.cli.main", "bitdance.data.packed_dataset", "bitdance.training.sharded_checkpoint",
    "torch._dynamo", "torch.distributed.fsdp",
])  # fmt: skip


def run_script(path: Path, arguments: list[str], output: Path) -> int:
    """``python path arguments``, all that it prints to a file; its exit status."""
    process = READY.Process(target=_script, args=(str(path), arguments, str(output)))
    process.start()
    process.join()
    return process.exitcode


def _script(path, arguments, output):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
