"""The page as an HTTP application, whose headers let a browser load nothing from elsewhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitdance.integrations.demo import html
from bitdance.integrations.demo.models import DemoModel
from bitdance.integrations.demo.page import build_page
from bitdance.integrations.demo.reconstruction import MAX_FILE_BYTES
from bitdance.integrations.demo.runner import Runner
from bitdance.integrations.serving.server import make_server

__all__ = ["create_app", "serve_page"]

# Gradio writes scripts and styles into the page, and makes functions of its templates.
_CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "base-uri 'self'",
        "form-action 'self'",
        "object-src 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
}
_FONTS = ["system-ui", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "monospace"]


def create_app(models: Sequence[DemoModel], runner: Runner, *, max_waiting: int = 32) -> ASGIApp:
    """The page as an application.

    Args:
        models: the models; at least one.
        runner: runs them.
        max_waiting: runs that may wait.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, build_page(models, runner, max_waiting=max_waiting), path="/",
        footer_links=[], run_history=False, show_error=False, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, max_file_size=MAX_FILE_BYTES, css=html.CSS,
        theme=gr.themes.Default(font=_FONTS, font_mono=_MONO_FONTS),
    )  # fmt: skip
    return _WithHeaders(app)


def serve_page(
    models: Sequence[DemoModel], *, host: str, port: int, max_waiting: int, open_browser: bool
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        models: the models; at least one.
        host: address to listen on.
        port: port to listen on.
        max_waiting: runs that may wait.
        open_browser: open the page in the browser of this machine.

    Raises:
        OSError: the address cannot be listened on.
    """
    runner = Runner()
    with temporary_files():
        app = create_app(models, runner, max_waiting=max_waiting)
        server = make_server(app, host=host, port=port, log_level="warning")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"the page is at {url}, Ctrl-C stops it", flush=True)
        if open_browser:
            threading.Timer(1, webbrowser.open, [url]).start()
        try:
            server.run()
        except SystemExit:  # it has logged why
            raise OSError(f"cannot listen on {host}:{port}") from None
        finally:
            runner.close()


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """Inside, Gradio's files are in a folder that is removed at the end."""
    name = "GRADIO_TEMP_DIR"
    earlier = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="bitdance-demo-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if earlier is not None:
                os.environ[name] = earlier


class _WithHeaders:
    """An application whose answers all have our headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
