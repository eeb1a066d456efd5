"""``bitdance demo``: a page in the browser that draws pictures."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from bitdance.cli.arguments import (
    add_model_arguments,
    add_quantization_argument,
    load_pipeline,
    load_text_pipeline,
    positive_int,
)
from bitdance.cli.memory import read_text_to_image_config
from bitdance.models.loading.bundled import BUNDLED, BUNDLED_TEXT
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="open a page that draws pictures in the browser",
        description="Serve a page that draws pictures patch by patch, shows their bits, and "
        "reconstructs pictures of your own. Without --model it has both bundled models. Needs "
        "pip install 'bitdance[demo]'.",
    )
    add_model_arguments(parser)
    parser.set_defaults(model=None)
    add_quantization_argument(parser)
    parser.add_argument(
        "--tokenizer",
        help="of a text-to-image model: folder or hub id of a tokenizer (default: its own)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--max-images", type=positive_int, default=8, help="images of a run, which are one batch"
    )
    parser.add_argument(
        "--max-inference-steps", type=positive_int, default=250,
        help="denoising steps per patch that a visitor may choose",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=positive_int,
        help="pixels of an image of a text-to-image model (default: the model's own size)",
    )  # fmt: skip
    parser.add_argument(
        "--max-waiting", type=positive_int, default=32, help="runs that may wait for the model"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; returns when the page is stopped."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("demo needs gradio: pip install 'bitdance[demo]'")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {options.port}")
    for name in ("autoencoder", "config", "tokenizer"):
        if options.model is None and getattr(options, name) is not None:
            raise ValueError(f"--{name} must be left out without --model")
    from bitdance.integrations.demo.models import Limits, demo_model
    from bitdance.integrations.demo.server import serve_page

    limits = Limits(
        max_images=options.max_images,
        max_inference_steps=options.max_inference_steps,
        max_pixels=options.max_pixels,
    )
    models = [demo_model(pipeline, name, limits) for name, pipeline in _pipelines(options).items()]
    serve_page(
        models, host=options.host, port=options.port, max_waiting=options.max_waiting,
        open_browser=options.open,
    )  # fmt: skip


def _pipelines(options: argparse.Namespace) -> dict[str, BitDancePipeline | BitDanceT2IPipeline]:
    """The models of the page by their names: that of ``--model``, or both bundled ones."""
    models = [BUNDLED_TEXT, BUNDLED] if options.model is None else [options.model]
    pipelines: dict[str, BitDancePipeline | BitDanceT2IPipeline] = {}
    for model in models:
        chosen = argparse.Namespace(**vars(options) | {"model": model})
        texts = read_text_to_image_config(chosen) is not None
        unused = "config" if texts else "tokenizer"
        if getattr(options, unused) is not None:
            kind = "draws texts" if texts else "draws classes"
            raise ValueError(f"--{unused} must be left out with {model}, which {kind}")
        pipelines[Path(model).name] = load_text_pipeline(chosen) if texts else load_pipeline(chosen)
    return pipelines
