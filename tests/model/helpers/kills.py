"""Kills of the processes of a run, at random moments of what they do."""

import itertools
import os
import random
import time

COUNT = int(os.environ.get("BITDANCE_KILLS", "2"))
"""Kills of each test: few in the suite, as many as that variable says otherwise."""

STEPS = 8 + 4 * COUNT
"""Steps of a run that saves a checkpoint after every second one."""

_MOMENTS = ("saving", "named", "steps", "start")


class Killer:
    """Kills a process of a run: while a checkpoint is saved, named, in the steps, at the start.

    Args:
        run: folder of the run.
        seed: seed of victims and moments.
    """

    def __init__(self, run, seed):
        self._run, self._draws = run, random.Random(seed)
        self._kinds = itertools.cycle(_MOMENTS)

    def kill(self, processes):
        """Kill one of `processes`; returns which, and in what moment."""
        kind, victim = next(self._kinds), self._draws.randrange(len(processes))
        if kind == "start":
            time.sleep(self._draws.uniform(0, 1))
        elif kind == "saving":
            self._wait(lambda: not self._found("*checkpoint*.tmp"), processes)  # an earlier one
            self._wait(lambda: self._found("*checkpoint*.tmp"), processes)
            time.sleep(self._draws.uniform(0, 0.1))
        else:
            before = self._found("checkpoint-*[0-9t]")
            self._wait(lambda: self._found("checkpoint-*[0-9t]") != before, processes)
            time.sleep(self._draws.uniform(0, 0.15 if kind == "steps" else 0.005))
        processes[victim].kill()
        return victim, kind

    def _found(self, pattern):
        return {path.name for path in self._run.glob(pattern)}

    def _wait(self, condition, processes):
        end = time.monotonic() + 90
        while not condition() and all(process.is_alive() for process in processes):
            assert time.monotonic() < end
            time.sleep(0.001)
