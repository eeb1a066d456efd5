"""CUDA graphs without CUDA."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance.sampling import graphs

__all__ = ["recorded"]


@pytest.fixture
def recorded(monkeypatch):
    """Steps recorded op by op and replayed as a CUDA graph would: kernels on the same memory."""
    made = []

    class Recording(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            self.calls.append((func, args, kwargs, result))
            return result

    class Recorded:
        def __init__(self):
            self.calls, self.results, self.replays, self.warm = [], None, 0, False
            made.append(self)

        def __call__(self, step):
            if not self.warm:
                self.warm = True
                return step()
            if self.results is None:
                # Unlike a capture a recording computes, so it is the first replay too.
                with Recording() as recording:
                    self.results = step()
                self.calls = recording.calls
                self.replays += 1
                return self.results
            self.replays += 1
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(_flat(result), _flat(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            return self.results

    monkeypatch.setattr(graphs, "make_runner", lambda _: Recorded())
    monkeypatch.setattr(graphs, "make_call_runner", lambda _, **__: graphs.run_eager)  # as on CUDA
    return made


def _flat(result):
    if result is None:  # an op that writes into one of its arguments
        return []
    return list(result) if isinstance(result, (tuple, list)) else [result]
