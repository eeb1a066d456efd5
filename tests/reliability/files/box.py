"""Work in forked processes with bounds on memory and time, which may die without harm.

A stage is a process with everything imported and one thread; boxes are its forks, so that each
costs milliseconds. Only a stage forks: a process with threads must not.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forked import READY

__all__ = ["CPU_SECONDS", "MAX_BYTES", "Died", "boxed", "exhausted", "forked", "scratch", "staged"]

MAX_BYTES = 1 << 30
"""Memory that one case may take beyond what the stage has."""
CPU_SECONDS = 10
"""Processor time of one case, which does not depend on the load of the machine."""
_IDLE_SECONDS = 5
_MEMORY_ERRORS = ("allocate", "out of memory", "memory exhausted", "enough memory")


@dataclass(frozen=True)
class Died:
    """The end of a box within a case.

    Attributes:
        why: signal or status, in words.
    """

    why: str


def staged(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``function(*arguments)`` in a stage.

    Raises:
        AssertionError: the function raised an error; the message has its text.
    """
    ours, theirs = READY.Pipe()
    process = READY.Process(target=_stage, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        failed, result = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(
            f"the stage of {function.__name__} ended: {process.exitcode}"
        ) from None
    finally:
        process.join()
    if failed:
        raise AssertionError(result)
    return result


def _stage(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        pipe.send((False, function(*arguments)))
    except AssertionError as error:
        pipe.send((True, str(error)))
    except BaseException as error:
        pipe.send((True, "".join(traceback.format_exception(error))))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one, so that no disk slows thousands of cases."""
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bitdance-", dir=place) as folder:
        yield Path(folder).resolve()


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a fork; returns its process id. Its status is 0, or 1 after an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # otherwise a collection in the fork copies the pages of all objects
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def boxed(case: Callable[[int], object], count: int) -> Iterator[Any]:
    """What ``case(i)`` returns for each i below `count`, or how the box has died in it.

    Cases run one after the other in a box with bounds; after a death the next box goes on.

    Args:
        case: returns something that pickle can hold, and raises nothing.
        count: number of cases.
    """
    number = 0
    while number < count:
        reader, writer = os.pipe()
        pid = forked(lambda: _run(case, number, count, reader, writer))  # noqa: B023
        os.close(writer)
        try:
            with os.fdopen(reader, "rb") as results:
                while number < count:
                    if _waits(pid, results):
                        os.kill(pid, signal.SIGKILL)
                        died: Died | None = Died("it waits")
                        break
                    try:
                        result = pickle.load(results)
                    except EOFError:
                        died = None
                        break
                    number += 1
                    yield result
        finally:
            _, status = os.waitpid(pid, 0)
        if number < count:
            number += 1
            yield died or Died(_describe(os.waitstatus_to_exitcode(status)))


def _waits(pid: int, results: Any) -> bool:
    """Whether a box sleeps instead of sending a result: on a busy machine it would be ready."""
    idle, before = 0, ""
    while not select.select([results], [], [], 1)[0]:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        used = " ".join(fields[11:13])
        idle = idle + 1 if fields[0] in "SD" and used == before else 0
        before = used
        if idle == _IDLE_SECONDS:
            return True
    return False


def _run(case: Callable[[int], object], first: int, count: int, reader: int, writer: int) -> None:
    os.close(reader)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(writer, "wb", buffering=0) as results:
        for number in range(first, count):
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
            result = case(number)
            signal.setitimer(signal.ITIMER_PROF, 0)
            results.write(pickle.dumps(result))


def _describe(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"it took more than {CPU_SECONDS} s"
    return f"it ended with {signal.Signals(-code).name if code < 0 else f'status {code}'}"


def exhausted(error: BaseException) -> bool:
    """Whether an error, or one that it stands for, says that there is not enough memory."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = str(current).lower()
        if isinstance(current, MemoryError) or any(words in text for words in _MEMORY_ERRORS):
            return True
        current = current.__cause__ or current.__context__
    return False
