"""The layout of the page, and which functions its buttons call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from bitdance.integrations.demo import html
from bitdance.integrations.demo.models import DemoModel, Picture
from bitdance.integrations.demo.reconstruction import sides
from bitdance.integrations.demo.runner import Runner
from bitdance.integrations.demo.studio import Studio, View, reconstruct
from bitdance.models.loading.bundled import BUNDLED_TEXT

__all__ = ["build_page"]

_FIRST_PROMPTS = {BUNDLED_TEXT: "red apple, twemoji style"}
_THUMBNAIL = (128, 128)  # of the gallery, whose pictures are files of the server
_CLEAN_UP = (600, 3600)  # look every ten minutes for files that are older than an hour
# Events of this name run one at a time, in the order in which they came.
_ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
# Browsers may call it; programs have ``bitdance serve``.
_PRIVATE = {"api_visibility": "private"}


def build_page(models: Sequence[DemoModel], runner: Runner, *, max_waiting: int = 32) -> gr.Blocks:
    """The page, with a tab for each model and one for pictures of visitors.

    Args:
        models: the models; at least one.
        runner: runs them.
        max_waiting: runs that may wait.
    """
    studios = [Studio(model, runner) for model in models]
    with gr.Blocks(title="bitdance", analytics_enabled=False, delete_cache=_CLEAN_UP) as page:
        gr.Markdown("# bitdance\nPictures whose tokens are bits, drawn patch by patch.")
        with gr.Tabs():
            for studio in studios:
                kind = "Classes" if studio.model.subjects else "Words"
                with gr.Tab(f"{kind}: {studio.model.name}"):
                    _drawing(studio)
            with gr.Tab("Your picture"):
                _reconstructing(models, runner)

        def leave(request: gr.Request) -> None:
            for studio in studios:
                studio.visits.leave(_visitor(request))

        page.unload(leave)
    page.queue(max_size=max_waiting)
    return page


def _drawing(studio: Studio) -> None:
    """The tab of a model."""
    model = studio.model
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            fields = _fields(model)
            with gr.Row():
                draw_button = gr.Button("Draw", variant="primary")
                stop_button = gr.Button("Stop")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(html.note("Nothing is drawn yet."), elem_classes="bd-status")
            grid = gr.HTML(html.empty_grid(fields["num_images"].value, model.size))
    gr.Markdown("### Your newest pictures\nChoose one to see its bits and its settings.")
    gallery = gr.Gallery(
        show_label=False, columns=12, fit_columns=False, height="auto", allow_preview=False,
        format="png", interactive=False, buttons=[], elem_classes="bd-history",
    )  # fmt: skip
    details = gr.HTML()

    def check(*values: Any) -> list[Any]:
        error = studio.check(dict(zip(fields, values, strict=True)))
        blamed = error and (error.field if error.field in fields else "subject")
        return [gr.validate(name != blamed, str(error)) for name in fields]

    def draw(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        entries = dict(zip(fields, values, strict=True))
        for view in studio.draw(_visitor(request), entries):
            yield _updates(view)

    def stop(request: gr.Request) -> str:
        return studio.stop(_visitor(request))

    def select(event: gr.SelectData, request: gr.Request) -> str:
        return studio.select(_visitor(request), event.index)

    triggers = [draw_button.click]
    if not model.subjects:
        triggers.append(fields["subject"].submit)
    drawing = gr.on(
        triggers, draw, list(fields.values()), [status, grid, gallery, details],
        validator=check, show_progress="full", show_progress_on=status,
        **_ONE_AT_A_TIME, **_PRIVATE,
    )  # fmt: skip
    stop_button.click(stop, None, status, cancels=drawing, queue=False, **_PRIVATE)
    gallery.select(select, None, details, queue=False, show_progress="hidden", **_PRIVATE)


def _fields(model: DemoModel) -> dict[str, Any]:
    """The fields for the arguments of ``DemoModel.settings``, laid out."""
    limits, fields = model.limits, dict[str, Any]()
    if model.subjects:
        fields["subject"] = gr.Dropdown(
            list(model.subjects), value=model.subjects[0], label="Class", filterable=True
        )
    else:
        fields["subject"] = gr.Textbox(
            _FIRST_PROMPTS.get(model.name, ""), label="Prompt", placeholder="what to draw", lines=2,
            submit_btn=False,
        )  # fmt: skip
        fields["negative_prompt"] = gr.Textbox(
            label="Negative prompt", placeholder="what guidance leads away from"
        )
    with gr.Row():
        fields["num_images"] = gr.Slider(
            1, limits.max_images, min(4, limits.max_images), step=1, label="Images",
            info="with one seed",
        )  # fmt: skip
        fields["num_inference_steps"] = gr.Slider(
            1, limits.max_inference_steps, model.num_inference_steps, step=1,
            label="Denoising steps", info="per patch",
        )  # fmt: skip
    with gr.Row():
        fields["guidance_scale"] = gr.Slider(
            0, limits.max_guidance_scale, model.guidance_scale, step=0.1, label="Guidance",
            info="1 or less is none",
        )  # fmt: skip
        fields["seed"] = gr.Textbox(label="Seed", info="empty for a random one", max_lines=1)
    if len(model.heights) > 1 or len(model.widths) > 1:
        with gr.Row():
            for side, name, choices in zip(
                model.size, ("height", "width"), (model.heights, model.widths), strict=True
            ):
                fields[name] = gr.Dropdown(
                    list(choices), value=side, label=f"{name.capitalize()} in pixels"
                )
    return fields


def _reconstructing(models: Sequence[DemoModel], runner: Runner) -> None:
    """The tab for pictures of visitors."""
    names = [model.name for model in models]
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            file = gr.File(label="A picture", type="filepath", file_types=["image"], height=160)
            name = gr.Dropdown(
                names, value=names[0], label="Autoencoder of", visible=len(names) > 1
            )
            side = gr.Dropdown(
                list(sides(models[0])), value=sides(models[0])[0], label="Shorter side in pixels"
            )
            button = gr.Button("Reconstruct", variant="primary")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(html.note("Send a picture through the autoencoder and back."))

    def named(given: object) -> DemoModel:
        return models[names.index(given)] if given in names else models[0]

    def choose(given: object) -> Any:
        choices = sides(named(given))
        return gr.Dropdown(list(choices), value=choices[0])

    def run(path: str | None, given: object, side: object) -> str:
        return reconstruct(named(given), runner, path, side)

    name.change(choose, name, side, queue=False, show_progress="hidden", **_PRIVATE)
    button.click(run, [file, name, side], shown, **_ONE_AT_A_TIME, **_PRIVATE)


def _updates(view: View) -> list[Any]:
    """The values of status, grid, gallery and details."""
    pictures = view.pictures
    gallery = gr.skip() if pictures is None else [_thumbnail(picture) for picture in pictures]
    parts = [gr.skip() if part is None else part for part in (view.grid, view.details)]
    return [view.status, parts[0], gallery, parts[1]]


def _thumbnail(picture: Picture) -> Image.Image:
    image = picture.image.copy()
    image.thumbnail(_THUMBNAIL)
    return image


def _visitor(request: gr.Request) -> str:
    """The page that is open in a browser."""
    return str(request.session_hash)
