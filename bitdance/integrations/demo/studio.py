"""What the page answers when a visitor does something, without Gradio.

No function raises: a visitor sees a message, and an error that is not theirs is logged with its
trace.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePath
from typing import Any, NamedTuple

import torch

from bitdance.integrations.demo import html
from bitdance.integrations.demo.models import DemoModel, InputError, Picture
from bitdance.integrations.demo.reconstruction import read_picture, rebuild
from bitdance.integrations.demo.runner import Progress, Runner
from bitdance.integrations.demo.visits import Visits
from bitdance.pipelines.base import GenerationCancelled
from bitdance.sampling.finite import NotFiniteError

__all__ = ["Studio", "View", "reconstruct"]

_LOG = logging.getLogger(__name__)
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class View(NamedTuple):
    """What the page shows of a run; None leaves a part as it is.

    Attributes:
        status: message or progress, HTML.
        grid: the images, HTML.
        pictures: all pictures of the visitor, newest first.
        details: the picture that is looked at, HTML.
    """

    status: str
    grid: str | None = None
    pictures: list[Picture] | None = None
    details: str | None = None


class Studio:
    """A model that visitors draw with.

    Args:
        model: the model.
        runner: runs it.
        visits: what is remembered of the visitors of this model.
    """

    def __init__(self, model: DemoModel, runner: Runner, visits: Visits | None = None) -> None:
        self.model, self.runner, self.visits = model, runner, visits or Visits()

    def check(self, entries: dict[str, Any]) -> InputError | None:
        """Why the model cannot draw what a visitor has entered; None if it can.

        Args:
            entries: arguments of ``DemoModel.settings``.
        """
        try:
            self.model.settings(**entries)
        except InputError as error:
            return error
        except Exception:  # ``draw`` says that it has failed
            return None
        return None

    def draw(self, visitor: str, entries: dict[str, Any]) -> Iterator[View]:
        """Draw what a visitor has entered.

        Args:
            visitor: who.
            entries: arguments of ``DemoModel.settings``.
        """
        run = self.visits.begin(visitor)
        pictures: list[Picture] = []
        try:
            settings = self.model.settings(**entries)
            empty = html.empty_grid(settings.num_images, settings.size)
            yield View(html.note("The model begins."), empty)
            with closing(self.runner.draw(self.model, settings, run)) as news:
                for item in news:
                    if isinstance(item, Progress):
                        grid = None
                        if item.previews is not None:
                            grid = html.picture_grid(item.previews, settings, finished=False)
                        yield View(html.progress(item.step, item.ar_steps), grid)
                    else:
                        pictures = item
            grid = html.picture_grid([p.image for p in pictures], settings, finished=True)
            details = html.show_picture(self.model, pictures[0])
        except Exception as error:
            yield View(_message(error))
        else:
            kept = self.visits.finish(visitor, run, pictures)
            yield View(html.note(f"Seed {settings.seed}."), grid, kept, details)
        finally:  # also where the page reads no further
            run.cancel()
            self.visits.finish(visitor, run, [])

    def stop(self, visitor: str) -> str:
        """Stop a visitor's run after the patch that is being drawn; a message, HTML."""
        self.visits.cancel(visitor)
        return html.note("Stopped.")

    def select(self, visitor: str, number: int) -> str:
        """A picture of a visitor, its bits and its settings, HTML.

        Args:
            visitor: who.
            number: number of the picture, the newest is 0.
        """
        pictures = self.visits.pictures(visitor)
        if not 0 <= number < len(pictures):
            return html.error("This picture is not kept any more.")
        try:
            return html.show_picture(self.model, pictures[number])
        except Exception as error:
            return _message(error)


def reconstruct(model: DemoModel, runner: Runner, path: str | None, side: object) -> str:
    """A visitor's picture, its reconstruction and its bits, HTML.

    Args:
        model: whose autoencoder to use.
        runner: runs it.
        path: the file that the visitor has sent; None without one.
        side: pixels of the shorter side that it is resized to.
    """
    if path is None:
        return html.error("Choose a picture first.")
    try:
        file = PurePath(path)
        with open(file, "rb") as opened:
            picture = read_picture(opened, file.name)
        return html.show_rebuilt(model, file.name, runner.call(rebuild, model, picture, side))
    except Exception as error:
        return _message(error)


def _message(error: Exception) -> str:
    """What a visitor reads of an error."""
    if isinstance(error, GenerationCancelled):
        text = str(error)
        return html.note(f"{text[:1].upper()}{text[1:]}.")
    if isinstance(error, InputError):
        return html.error(str(error))
    if isinstance(error, NotFiniteError):
        return html.error(f"The model has failed: {error}.")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in _NO_MEMORY
    ):
        return html.error("There is not enough memory for that: draw fewer or smaller images.")
    _LOG.error("an error of the page", exc_info=error)
    return html.error(f"The page has failed ({type(error).__name__}); its log says why.")
