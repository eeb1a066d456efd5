"""A server of HTTP around the application."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

__all__ = ["make_server"]


def make_server(
    app: ASGIApp, *, host: str, port: int, max_connections: int = 512, log_level: str = "info"
) -> uvicorn.Server:
    """The server; its ``run`` returns after SIGINT or SIGTERM.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        max_connections: connections at a time; others are answered with status 503.
        log_level: of uvicorn's log.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app, host=host, port=port, http="h11", ws="none", lifespan="on", log_level=log_level,
            limit_concurrency=max_connections, timeout_keep_alive=5,
            timeout_graceful_shutdown=5, server_header=False,
        )
    )  # fmt: skip
