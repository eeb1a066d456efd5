"""Processes that begin with everything imported, which takes a new Python with torch seconds."""

import multiprocessing

READY = multiprocessing.get_context("forkserver")
# What an optimiser imports too. The server is one for all test files of a worker.
READY.set_forkserver_preload(["bitdance.cli", "bitdance.packed_dataset", "torch._dynamo"])
