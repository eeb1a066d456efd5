"""Functions that run in several processes of one world, on gloo."""

import os
import socket
import traceback

from tests.forked import READY


class Processes:
    """``function(rank, *arguments)`` in `size` processes; a context manager that ends them.

    Args:
        function: importable by name.
        arguments: further arguments.
        size: number of processes.
        start: which ranks start at once; the others never come.
        timeout: BITDANCE_TIMEOUT of the processes.
    """

    def __init__(self, function, *arguments, size=2, start=None, timeout=120):
        self._pipes, self.processes = {}, {}
        port = free_port()
        for rank in range(size) if start is None else start:
            ours, theirs = READY.Pipe()
            environment = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "BITDANCE_TIMEOUT": timeout,
            }  # fmt: skip
            process = READY.Process(
                target=_run, args=(theirs, environment, function, rank, arguments)
            )
            process.start()
            theirs.close()
            self._pipes[rank], self.processes[rank] = ours, process

    def results(self, timeout=240):
        """By rank: what the functions returned, their exceptions as text, None of the killed."""
        found = []
        for pipe in self._pipes.values():
            try:
                assert pipe.poll(timeout), "a process does not end"
                found.append(pipe.recv())
            except (EOFError, ConnectionResetError):
                found.append(None)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.join(timeout=10)
            process.kill()
            process.join()


def run_processes(function, *arguments, **options):
    """The results of a function in all processes, none of which may fail."""
    with Processes(function, *arguments, **options) as processes:
        results = processes.results()
    for result in results:
        assert not isinstance(result, Failure), result.text
    for rank, process in processes.processes.items():  # a killed one has no result either
        assert process.exitcode == 0, f"rank {rank} ended with {process.exitcode}"
    return results


class Failure:
    """The exception of a process."""

    def __init__(self, error):
        self.kind, self.message = type(error).__name__, str(error)
        self.text = "".join(traceback.format_exception(error))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(pipe, environment, function, rank, arguments):
    os.environ.update({name: str(value) for name, value in environment.items()})
    import torch

    torch.set_num_threads(1)
    try:
        result = function(rank, *arguments)
    except BaseException as error:
        result = Failure(error)
    pipe.send(result)
    pipe.close()
