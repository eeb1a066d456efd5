"""What the page remembers of its visitors, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from bitdance.integrations.demo.models import Picture
from bitdance.integrations.demo.runner import Run

__all__ = ["Visits"]


class _Visit:
    def __init__(self) -> None:
        self.run: Run | None = None
        self.pictures: list[Picture] = []  # newest first

    @property
    def num_bytes(self) -> int:
        return sum(picture.num_bytes for picture in self.pictures)


class Visits:
    """The newest pictures and the run of each visitor.

    A visitor is a page that is open in a browser. Who has been away for longest is forgotten first:
    when there are too many visitors, or when all pictures together take too much memory.

    Args:
        max_pictures: pictures of a visitor.
        max_visits: visitors.
        max_bytes: memory of the pictures of all visitors.
    """

    def __init__(
        self, *, max_pictures: int = 24, max_visits: int = 64, max_bytes: int = 256 << 20
    ) -> None:
        self.max_pictures, self.max_visits, self.max_bytes = max_pictures, max_visits, max_bytes
        self._lock = threading.Lock()
        self._visits: OrderedDict[str, _Visit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._visits)

    def begin(self, visitor: str) -> Run:
        """A run of a visitor; one of theirs that is not over is cancelled."""
        run = Run()
        with self._lock:
            visit = self._visit(visitor)
            if visit.run is not None:
                visit.run.cancel()
            visit.run = run
        return run

    def cancel(self, visitor: str) -> bool:
        """Cancel a visitor's run; returns whether there was one."""
        with self._lock:
            visit = self._visits.get(visitor)
            run = None if visit is None else visit.run
            if visit is None or run is None:
                return False
            run.cancel()
            visit.run = None
            return True

    def finish(self, visitor: str, run: Run, pictures: Sequence[Picture]) -> list[Picture]:
        """End a run and remember its pictures, unless it was cancelled or its visitor has left.

        Returns:
            All pictures of the visitor, newest first.
        """
        with self._lock:
            visit = self._visits.get(visitor)
            if visit is None:
                return []
            if visit.run is run:
                visit.run = None
                visit.pictures = [*pictures, *visit.pictures][: self.max_pictures]
                self._visits.move_to_end(visitor)
                self._free()
            return list(visit.pictures)

    def pictures(self, visitor: str) -> list[Picture]:
        """The pictures of a visitor, newest first."""
        with self._lock:
            visit = self._visits.get(visitor)
            return list(visit.pictures) if visit else []

    def leave(self, visitor: str) -> None:
        """Forget a visitor, and cancel their run."""
        with self._lock:
            visit = self._visits.pop(visitor, None)
        if visit is not None and visit.run is not None:
            visit.run.cancel()

    def _visit(self, visitor: str) -> _Visit:
        """The visit of a visitor, who counts as the last to have come."""
        visit = self._visits.setdefault(visitor, _Visit())
        self._visits.move_to_end(visitor)
        while len(self._visits) > self.max_visits:
            _, oldest = self._visits.popitem(last=False)
            if oldest.run is not None:
                oldest.run.cancel()
        return visit

    def _free(self) -> None:
        """Forget the oldest pictures of those who have been away for longest."""
        excess = sum(visit.num_bytes for visit in self._visits.values()) - self.max_bytes
        for visit in self._visits.values():
            while excess > 0 and visit.pictures:
                excess -= visit.pictures.pop().num_bytes
