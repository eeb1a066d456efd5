"""The body of POST /v1/images/generations, and errors, in the shape of OpenAI's API."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitdance.io.validation import brief

__all__ = ["MAX_SEED", "ApiError", "ImagesRequest", "parse_request", "parse_size"]

MAX_SEED = 2**64 - 1
MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3


class ApiError(Exception):
    """An answer other than images.

    Args:
        message: what is wrong.
        status: HTTP status.
        param: field of the request that is meant.
        code: short name of the error, for programs.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class ImagesRequest(BaseModel):
    """Fields of a request: OpenAI's, and seed, steps, guidance and negative prompt.

    Fields of OpenAI's API that select what this server has not, such as `quality`, may be "auto".
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1, le=MAX_IMAGES)
    size: str | None = Field(default=None, max_length=20)
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=MAX_PARTIAL_IMAGES)
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto"] | None = None
    user: str | None = None

    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    negative_prompt: str | None = None


def parse_request(body: bytes) -> ImagesRequest:
    """The request that `body`, a JSON object, holds.

    Raises:
        ApiError: it is no JSON object, or a field is unknown, of another type or out of range.
    """
    try:
        fields = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise ApiError(f"body must be JSON: {reason}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(f"body must be a JSON object, got {brief(fields)}", code="invalid_json")
    try:
        return ImagesRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        got = "" if first["type"] in ("missing", "extra_forbidden") else brief(first["input"])
        text = f"{param[:60]}: {message}" + (f", got {got}" if got else "")
        raise ApiError(text, param=param[:60], code="invalid_value") from None


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(height, width) of a `size` such as "1024x768", width first; None for "auto".

    Raises:
        ApiError: it has another form.
    """
    if size is None or size == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
    if match is None:
        raise ApiError(
            f"size must be 'auto' or WIDTHxHEIGHT, got {brief(size)}",
            param="size", code="invalid_value",
        )  # fmt: skip
    return int(match[2]), int(match[1])


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
