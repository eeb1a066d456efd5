"""``bitdance serve``: answer requests for images over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from bitdance.cli.arguments import (
    add_decoding_arguments,
    add_model_arguments,
    add_quantization_argument,
    load_pipeline,
    load_text_pipeline,
    positive_int,
)

__all__ = ["add_command"]

_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_SLOTS = {"cpu": 2, "cuda": 32}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Answer POST /v1/images/generations, in the shape of OpenAI's API. Requests "
        "share a batch that they enter and leave between AR steps. Needs "
        "pip install 'bitdance[serve]'.",
    )
    add_model_arguments(parser)
    add_quantization_argument(parser)
    add_decoding_arguments(parser)
    parser.add_argument(
        "--text", action="store_true", help="the model draws texts; without it, classes"
    )
    parser.add_argument("--name", help="name of the model in answers (default: that of --model)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument(
        "--slots", type=positive_int,
        help="images of a kind at a time (default: 2 on the CPU, 32 on a card)",
    )  # fmt: skip
    parser.add_argument(
        "--max-waiting", type=positive_int, default=256,
        help="images that may wait; more are refused with status 429",
    )  # fmt: skip
    parser.add_argument(
        "--max-kinds", type=positive_int, default=2,
        help="kinds of images (with guidance or not, by denoising steps) with slots at a time",
    )  # fmt: skip
    parser.add_argument(
        "--max-inference-steps", type=positive_int, default=250,
        help="denoising steps that a request may ask for",
    )  # fmt: skip
    parser.add_argument(
        "--max-prompt-tokens", type=positive_int, default=1024, help="tokens of a prompt"
    )
    parser.add_argument(
        "--max-pixels", type=positive_int,
        help="pixels of an image of a text-to-image model (default: the model's own size)",
    )  # fmt: skip
    parser.add_argument(
        "--request-timeout", type=positive_int, default=600, metavar="SECONDS",
        help="time for an answer, the wait for a slot included",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command; returns when the server is stopped."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"serve needs {missing[0]}: pip install 'bitdance[serve]'")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {options.port}")
    if options.text and options.config:
        raise ValueError("--config must be left out with --text, whose folder has its own")
    from bitdance.integrations.serving.app import AppLimits, create_app
    from bitdance.integrations.serving.engine import Engine
    from bitdance.integrations.serving.models import Limits, serve_model
    from bitdance.integrations.serving.server import make_server

    pipeline = load_text_pipeline(options) if options.text else load_pipeline(options)
    limits = Limits(
        max_inference_steps=options.max_inference_steps,
        max_prompt_tokens=options.max_prompt_tokens,
        max_pixels=options.max_pixels,
    )
    model = serve_model(pipeline, options.name or Path(options.model).name, limits)
    engine = Engine(
        model, slots=options.slots or _SLOTS[pipeline.device.type],
        max_waiting=options.max_waiting, max_kinds=options.max_kinds,
    )  # fmt: skip
    app = create_app(engine, AppLimits(request_seconds=options.request_timeout))
    server = make_server(app, host=options.host, port=options.port)
    try:
        server.run()
    except SystemExit:  # it has logged why
        raise OSError(f"cannot listen on {options.host}:{options.port}") from None
