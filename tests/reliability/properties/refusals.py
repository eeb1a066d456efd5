"""Properties of what is refused: odd settings and arguments, NaN, shared and absent memory."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from bitdance import BitDancePipeline, NotFiniteError
from bitdance.models.config import AutoencoderConfig, HeadConfig
from bitdance.training.config import AdversarialConfig, DataConfig, LossConfig
from bitdance.training.optim_config import OptimConfig, ParallelConfig
from bitdance.training.text_to_image_config import TextToImageShape
from bitdance_kernels import (
    flip_bits,
    hamming_distance,
    pack_signs,
    rms_norm,
    rope_append,
    swiglu,
    unpack_signs,
)
from tests.model.helpers.tiny import tiny_config, tiny_pipeline
from tests.model.models.test_text_to_image import tiny
from tests.reliability.properties._for_all import PLACES, SEEDS, Place, for_all, rng

__all__ = ["PROPERTIES"]

_PLACE = st.sampled_from(PLACES)


_SETTINGS: Mapping[str, Callable[[], Any]] = {
    "optim": lambda: OptimConfig(steps=500, warmup=1),
    "parallel": ParallelConfig,
    "data": lambda: DataConfig(path="data", size=8),
    "loss": LossConfig,
    "adversarial": AdversarialConfig,
    "autoencoder": AutoencoderConfig,
    "head": lambda: HeadConfig(
        ch_target=8, ch_cond=32, ch_latent=64, depth_latent=2, depth_adanln=1
    ),
    "model": tiny_config,
    "shape of text to image": lambda: TextToImageShape(
        diff_dim=64, diff_layers=2, diff_adanln_layers=1
    ),
    "text to image": lambda: tiny().config,
}
"""Valid settings of every class."""


@functools.cache
def _valid(kind: str) -> Any:
    return _SETTINGS[kind]()


_ODD: SearchStrategy[Any] = st.one_of(
    st.booleans(), st.none(), st.text(max_size=4), st.binary(max_size=3),
    st.sampled_from(("1", "2.5", "no", "auto", "cosine")),
    st.sampled_from((math.nan, math.inf, -math.inf, 2.5, 1.0, 0.0, -0.5, 1e300, 1e4)),
    st.sampled_from((0, 1, -1, 3, 2**63, -(2**63), 2**64, 10**30)), st.complex_numbers(),
    st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=2), st.floats(), st.none()),
             max_size=3),
    st.sets(st.integers(0, 3), max_size=2), st.dictionaries(st.text(max_size=2), st.booleans()),
)  # fmt: skip


@for_all(kind=st.sampled_from(sorted(_SETTINGS)), value=_ODD)
def settings_hold_what_their_types_say(kind: str, value: Any) -> None:
    """Whatever a field is given: another value is refused. Where 2 was right, 2.5 is not."""
    valid = _valid(kind)
    hints = typing.get_type_hints(type(valid))
    for field in dataclasses.fields(valid):
        for odd in (value, True, 2.5, math.inf, math.nan) if field.init else ():
            try:
                held = getattr(dataclasses.replace(valid, **{field.name: odd}), field.name)
            except (TypeError, ValueError):
                continue
            where = f"{kind}: {field.name} = {odd!r}"
            assert _fits(held, hints[field.name]), f"{where} became {held!r}"
            for plain in (str, bool):
                assert not isinstance(odd, plain) or isinstance(held, plain), where
            assert field.name not in _COUNTS or type(held) is int, where


_COUNTS = (
    "steps",
    "batch_size",
    "size",
    "n_layer",
    "diff_layers",
    "depth_latent",
    "warmup",
    "seed",
)
"""Fields that are numbers of something, whatever their annotation."""


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type; numbers are finite, and True is no number."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(each) == len(value) and all(map(_fits, value, each))
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, parts[0]) and _fits(one, parts[1]) for key, one in value.items()
        )
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint)


@functools.cache
def _pipeline() -> BitDancePipeline:
    pipeline = tiny_pipeline()
    pipeline.model.requires_grad_(False)
    return pipeline


_SMALL = st.integers(-2, 3)
_LIST = st.lists(st.one_of(_SMALL, st.booleans(), st.sampled_from((0.9, 1.0, "1", None))),
                 min_size=2, max_size=2)  # fmt: skip
_NUMBER: SearchStrategy[Any] = st.one_of(
    _SMALL, st.booleans(), _LIST,
    st.sampled_from(("1", "", 0.9, 1.0, 2.5, math.nan, math.inf, 2**64, b"1")),
)  # fmt: skip
_CALL = ("seed", "sample_ids", "num_inference_steps", "num_images_per_prompt", "batch_size")


def _message(call: Callable[[], object], *kinds: type[Exception]) -> str | None:
    """That of the error that a call raises; None if there is none."""
    try:
        call()
    except kinds as error:
        return str(error)
    return None


@for_all(name=st.sampled_from(_CALL), value=_NUMBER)
def numbers_of_a_call_are_not_rounded(name: str, value: Any) -> None:
    """Numbers of images and steps, seeds and ids are integers, or 2.0 in place of 2."""
    given = {"num_inference_steps": 1, "output_type": "latent", name: value}
    message = _message(lambda: _pipeline()([1, 2], **given), TypeError, ValueError)
    if message is not None:
        assert name in message, f"{name} = {value!r}: {message}"
        return
    several = value if isinstance(value, list) and name in ("seed", "sample_ids") else [value]
    for one in several:
        exact = type(one) in (int, float) and one == int(one)
        assert exact, f"{name} = {value!r} is accepted"


@for_all(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=3), weight=st.integers(0, 10**6),
    element=st.integers(0, 10**9), guidance=st.sampled_from((1.0, 2.0)),
)  # fmt: skip
def nan_in_a_weight_is_an_error_or_of_no_matter(
    labels: list[int], weight: int, element: int, guidance: float
) -> None:
    """Never another picture; weights of another class, or of the encoder, do not matter."""
    pipeline = _pipeline()
    options: dict[str, Any] = {
        "num_inference_steps": 1, "guidance_scale": guidance, "output_type": "uint8",
    }  # fmt: skip
    expected = pipeline(labels, **options).images
    parameters = list(pipeline.model.parameters())
    chosen = parameters[weight % len(parameters)]
    place = np.unravel_index(element % chosen.numel(), chosen.shape)
    before = chosen[place].clone()
    chosen[place] = math.nan
    try:
        found = pipeline(labels, **options).images
    except NotFiniteError:
        return
    finally:
        chosen[place] = before
    assert torch.equal(found, expected)


@for_all(
    seed=SEEDS, B=st.integers(1, 3), which=st.sampled_from(("k_cache", "v_cache")),
    other=st.sampled_from(("itself", "the other cache", "qkv")), place=_PLACE,
)  # fmt: skip
def what_is_written_has_memory_of_its_own(
    seed: int, B: int, which: str, other: str, place: Place
) -> None:
    """A cache that is expanded, or lies where another tensor lies, is refused and unchanged."""
    draw = rng(seed)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")

    H, D, T = 2, 8, 4
    qkv = normals(B, 1, 3 * H * D)
    caches = {"k_cache": normals(B, T, H, D), "v_cache": normals(B, T, H, D)}
    shape = caches[which].shape
    if other == "itself":
        caches[which] = normals(1, 1, 1, D).expand(shape)
    elif other == "the other cache":
        base = normals(2 * caches[which].numel())
        shift = int(torch.randint(caches[which].numel(), (), generator=draw, dtype=torch.int64))
        caches["k_cache"] = base[: caches[which].numel()].view(shape)
        caches["v_cache"] = base[shift : shift + caches[which].numel()].view(shape)
    else:
        base = normals(max(qkv.numel(), caches[which].numel()))
        qkv = base[: qkv.numel()].view(qkv.shape)
        caches[which] = base[-caches[which].numel() :].view(shape)
    before = [t.clone() for t in caches.values()]
    freqs = normals(T, D // 2, 2)
    position = torch.zeros(B, dtype=torch.int32, device="cpu")
    with place.limit():
        message = _message(
            lambda: rope_append(
                qkv, caches["k_cache"], caches["v_cache"], position, freqs, num_heads=H,
                backend=place.backend,
            ),
            RuntimeError, ValueError,
        )  # fmt: skip
    assert message is not None, f"{which} shares memory with {other}, and is accepted"
    assert all(map(torch.equal, before, caches.values()))


@for_all(
    seed=SEEDS, rows=st.integers(1, 3), cache=st.integers(3, 9), angles=st.integers(3, 9),
    first=st.lists(st.integers(-1, 9), min_size=1, max_size=2), place=_PLACE,
)  # fmt: skip
def positions_beyond_what_is_there_are_refused(
    seed: int, rows: int, cache: int, angles: int, first: list[int], place: Place
) -> None:
    """Behind the cache, behind the table of angles, or below zero; nothing is written then."""
    draw = rng(seed)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")

    B, H, D = len(first), 2, 8
    k_cache, v_cache = normals(B, cache, H, D), normals(B, cache, H, D)
    before = k_cache.clone(), v_cache.clone()
    position = torch.tensor(first, dtype=torch.int32, device="cpu")
    qkv, freqs = normals(B, rows, 3 * H * D), normals(angles, D // 2, 2)
    with place.limit():
        message = _message(
            lambda: rope_append(
                qkv, k_cache, v_cache, position, freqs, num_heads=H, backend=place.backend
            ),
            IndexError, ValueError, RuntimeError,
        )  # fmt: skip
    there = all(one >= 0 and one + rows <= min(cache, angles) for one in first)
    assert (message is None) == there, f"{first}, {rows} rows, {cache}, {angles}: {message}"
    if not there:
        assert all(map(torch.equal, before, (k_cache, v_cache)))


_TOO_LARGE: Mapping[str, Callable[[int], object]] = {
    "pack_signs": lambda n: pack_signs(_ones(n, 8)),
    "unpack_signs": lambda n: unpack_signs(_bytes(n)),
    "flip_bits": lambda n: flip_bits(_bytes(n), 0.5),
    "rms_norm": lambda n: rms_norm(_ones(n, 8), _ones(1, 8)[0]),
    "swiglu": lambda n: swiglu(_ones(n, 16)),
    "hamming_distance": lambda n: hamming_distance(_bytes(2**20), _bytes(n >> 20)),
}


def _ones(rows: int, width: int) -> torch.Tensor:
    return torch.ones((1, width), dtype=torch.float32, device="cpu").expand(rows, width)


def _bytes(rows: int) -> torch.Tensor:
    return torch.ones((1, 1), dtype=torch.uint8, device="cpu").expand(rows, 1)


@for_all(op=st.sampled_from(sorted(_TOO_LARGE)), bits=st.integers(47, 56))
def memory_that_is_not_there_is_refused_as_in_pytorch(op: str, bits: int) -> None:
    """By an error of the kind that programs catch, which says how much was asked for."""
    message = _message(lambda: _TOO_LARGE[op](2**bits), RuntimeError)
    assert message is not None
    assert "memory" in message


PROPERTIES = (
    settings_hold_what_their_types_say,
    numbers_of_a_call_are_not_rounded,
    nan_in_a_weight_is_an_error_or_of_no_matter,
    what_is_written_has_memory_of_its_own,
    positions_beyond_what_is_there_are_refused,
    memory_that_is_not_there_is_refused_as_in_pytorch,
)
