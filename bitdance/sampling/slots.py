"""Slots: a batch that images enter and leave between AR steps.

A ``SlotDecoder`` has a fixed number of slots, each with a row of the cache for an image, or two
with guidance. ``add`` runs what comes before the first patch, alone, and copies it into a slot;
``advance`` samples the next patch of all images at once, whatever the number of its step; an image
that is complete leaves. Step, guidance, size and noise keys of the slots are vectors on the device,
so that captured graphs serve all steps of all images. Each bucket, a number of slots, has one that
samples a patch and one that feeds it to the transformer. A step computes the smallest bucket that
holds all images; slots of it without an image compute something that nobody reads.

An image has the bits that it has alone: its rows are computed by the same functions, and its noise
is that of its seed, its sample id and its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from bitdance.models.kv_cache import KVCache
from bitdance.sampling import graphs
from bitdance.sampling.finite import NotFiniteError, largest
from bitdance.sampling.flow_sampler import Schedule, binarize, make_head
from bitdance.sampling.slot_sequences import SlotSequence
from bitdance_kernels import denoise_step, noise_keys
from bitdance_kernels import noise as philox_noise

__all__ = ["Slot", "SlotDecoder", "SlotImage"]

Start = TypeVar("Start")


@dataclass(frozen=True)
class SlotImage(Generic[Start]):
    """An image to sample.

    Attributes:
        start: what it shows: a label, or a ``Prompt`` of a text-to-image model.
        guidance: guidance of every AR step, see ``guidance_at``; of a decoder without guidance the
            values do not matter.
        seed: seed, in [0, 2^64).
        sample_id: id that tells images of one seed apart, in [0, 2^32).
    """

    start: Start
    guidance: tuple[float, ...]
    seed: int
    sample_id: int = 0


class Slot(Generic[Start]):
    """An image that is being sampled.

    Attributes:
        image: the image.
        ar_steps: patches of the image.
        step: number of patches that are sampled.
        packed: uint8 [N, ceil(C / 8)] on the CPU, in generation order; 0 where nothing is sampled.
        error: why sampling has ended early, or None.
    """

    def __init__(
        self, image: SlotImage[Start], ar_steps: int, patch_shape: tuple[int, int]
    ) -> None:
        P, bits = patch_shape
        self.image, self.ar_steps, self.step = image, ar_steps, 0
        size = (ar_steps * P, -(-bits // 8))
        self.packed = torch.zeros(size, dtype=torch.uint8, device="cpu")
        self.error: NotFiniteError | None = None
        self._tokens = 0  # in the cache

    @property
    def finished(self) -> bool:
        """Whether all patches are sampled, or none will follow."""
        return self.step == self.ar_steps or self.error is not None


class _State:
    """Buffers of all slots that stay; those of a bucket are the first ones.

    Rows of a slot lie side by side, the conditional one first.
    """

    def __init__(self, sequence: SlotSequence[Start], slots: int, rows: int) -> None:
        self.rows, self.cache = rows, sequence.allocate(slots * rows)
        keys, lengths = self.cache.layers[0][0], self.cache.lengths
        P, device = sequence.patch_shape[0], lengths.device
        # Tensors made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            # Outputs of the transformer that condition the next patch.
            self.hidden = torch.zeros(
                slots, rows, P, sequence.width, dtype=keys.dtype, device=device
            )
            self.keys = torch.zeros(slots, rows, 3, dtype=torch.int64, device=device)
            self.guidance = torch.ones(
                slots, sequence.max_ar_steps, dtype=torch.float32, device=device
            )
            self.step = torch.zeros(slots, dtype=torch.int64, device=device)
            # Patches of the image; 0 where there is none.
            self.ar_steps = torch.zeros(slots, dtype=torch.int64, device=device)
            self.columns = torch.ones(slots, dtype=torch.int64, device=device)
            # Whether both rows sample the next patch without guidance, each its own.
            self.apart = torch.zeros(slots, dtype=torch.bool, device=device)

    def vectors(self) -> tuple[torch.Tensor, ...]:
        """Buffers whose first dimension is the slot."""
        return (
            self.hidden, self.keys, self.guidance, self.step, self.ar_steps, self.columns,
            self.apart,
        )  # fmt: skip

    def cache_of(self, slot: int) -> KVCache:
        """Rows of a slot in the cache."""
        return self.cache.part(slice(slot * self.rows, (slot + 1) * self.rows))

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a slot, whose rows have at most `tokens` tokens in the cache."""
        for vector in self.vectors():
            vector[target].copy_(vector[source])
        self.cache_of(target).copy_(self.cache_of(source), tokens)

    def clear(self, slot: int) -> None:
        """Leave no image in a slot."""
        self.step[slot], self.ar_steps[slot] = 0, 0


class _Bucket:
    """A step of the first slots, as functions without arguments.

    Args:
        state: buffers of all slots.
        sequence: the model.
        schedule: denoising steps.
        slots: number of slots.
    """

    def __init__(
        self, state: _State, sequence: SlotSequence[Start], schedule: Schedule, slots: int
    ) -> None:
        self._sequence, self._schedule, self._slots = sequence, schedule, slots
        rows = slots * state.rows
        self._shape = (slots, state.rows)
        self._rows_shape = (rows, *sequence.patch_shape)
        cache = state.cache.first(rows)
        self._lengths = cache.lengths.view(self._shape)
        vectors = [vector[:slots] for vector in state.vectors()]
        (
            self._hidden, self._keys, self._guidance, self._step, self._ar_steps, self._columns,
            self._apart,
        ) = vectors  # fmt: skip
        self._head = make_head(sequence.network, schedule, rows, sequence.head_patch)
        self._head.load()
        self._forward = sequence.feed(cache)
        with torch.inference_mode(False):
            self._tokens = torch.zeros(
                self._rows_shape, dtype=torch.float32, device=cache.lengths.device
            )
        self.runners = [graphs.make_runner(cache.lengths.device) for _ in range(2)]

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample a patch of each slot.

        Returns:
            packed: uint8 [slots, P, ceil(C / 8)], of the conditional rows.
            peaks: float32 [slots], largest magnitude of the predictions, NaN if there is one.
            Both are overwritten by the next call.
        """
        return self.runners[0](self._sample)

    def feed(self) -> None:
        """Run the transformer on the patches that ``sample`` has sampled."""
        self.runners[1](self._feed)

    def check(self) -> None:
        """See ``Head.check``."""
        self._head.check()

    def _positions(self) -> torch.Tensor:
        """Position embeddings of the patches, [slots, 1, P, dim]."""
        return self._sequence.positions(self._step, self._columns)[:, None]

    def _sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        cond = (self._hidden + self._positions()).flatten(0, 1)
        if self._sequence.head_patch is None:
            cond = cond.squeeze(1)
        prediction = self._denoise(cond).view(self._rows_shape)
        tokens, packed = binarize(prediction)
        self._tokens.copy_(tokens)
        peaks = largest(prediction).view(self._shape).amax(1)
        return packed.view(*self._shape, *packed.shape[1:])[:, 0], peaks

    def _feed(self) -> tuple[torch.Tensor]:
        # Other slots have nothing to feed; what they write at the start of their rows is not read.
        going = self._step + 1 < self._ar_steps
        self._lengths.mul_(going[:, None])
        positions = self._positions()
        positions = positions.expand(*self._shape, *positions.shape[2:]).flatten(0, 1)
        self._hidden.copy_(self._forward(self._tokens, positions).view(self._hidden.shape))
        self._step.add_(1).mul_(going)
        # From now on both rows share their noise; that of the next AR step, see ``noise_keys``.
        self._keys.copy_(self._keys[:, :1].expand_as(self._keys).contiguous())
        self._keys[..., 1] += 2
        self._apart.zero_()
        return (self._hidden,)

    def _denoise(self, cond: torch.Tensor) -> torch.Tensor:
        """The predictions of all rows, [rows, (P,) C]; ``denoise`` with guidance of each slot."""
        head, schedule = self._head, self._schedule
        shape = (*cond.shape[:-1], self._rows_shape[-1])
        keys = self._keys.view(-1, 3)
        scale = self._guidance.gather(1, self._step[:, None])
        x = philox_noise(keys, 0, math.prod(shape[1:]), backend="auto").view(shape)
        none = torch.zeros_like(x)  # the last step is deterministic
        last = len(schedule.times) - 1
        with head.precision():
            head.begin(cond)
            for i in range(last + 1):
                x0 = self._guided(head.predict(i, x), scale)
                x = denoise_step(
                    x, x0, schedule.table, schedule.steps[i],
                    noise=none if i == last else None, keys=None if i == last else keys,
                )  # fmt: skip
        return x

    def _guided(self, x0: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Guided predictions of both rows of each slot, rounded as ``denoise_step`` does."""
        if self._shape[1] == 1:
            return x0
        pair = x0.float().view(*self._shape, -1)
        conditional, unconditional = pair.unbind(1)
        guided = unconditional + scale * (conditional - unconditional)
        return torch.where(self._apart[:, None, None], pair, guided[:, None]).view(x0.shape)


class SlotDecoder(Generic[Start]):
    """Samples images that enter and leave between AR steps.

    A decoder serves one thread at a time, and its model keeps its parameters. Caches and buffers
    for all slots are allocated at once; a bucket's graphs are captured when it is first used.

    Args:
        sequence: the model, as slots see it.
        guided: whether images have guidance; those with and without have decoders of their own.
        num_inference_steps: denoising steps per patch, the same for all images.
        slots: maximum number of images at a time.

    Raises:
        ValueError: `slots` is less than 1, or `num_inference_steps` is out of range.
    """

    def __init__(
        self, sequence: SlotSequence[Start], *, guided: bool, num_inference_steps: int, slots: int
    ) -> None:
        if slots < 1:
            raise ValueError(f"SlotDecoder: slots must be at least 1, got {slots}")
        self._sequence = sequence
        self._schedule = Schedule.of(sequence.network, num_inference_steps)
        self._state = _State(sequence, slots, 2 if guided else 1)
        self._sizes = bucket_sizes(slots)
        self._buckets: dict[int, _Bucket] = {}
        self._slots: list[Slot[Start] | None] = [None] * slots

    @property
    def active(self) -> list[Slot[Start]]:
        """Images that are being sampled."""
        return [slot for slot in self._slots if slot is not None]

    @property
    def free(self) -> int:
        """Number of images that can be added."""
        return self._slots.count(None)

    @property
    def buckets(self) -> list[int]:
        """Sizes of the buckets that were used."""
        return sorted(self._buckets)

    @torch.no_grad()
    def add(self, image: SlotImage[Start]) -> Slot[Start]:
        """Bring an image into a free slot; its first patch is sampled by the next ``advance``.

        Raises:
            RuntimeError: no slot is free.
            ValueError: the image does not fit into a slot, or its guidance has another number of
                steps; nothing is changed.
        """
        if None not in self._slots:
            raise RuntimeError(f"SlotDecoder.add: all {len(self._slots)} slots are taken")
        ar_steps, state = self._sequence.ar_steps(image.start), self._state
        if len(image.guidance) != ar_steps:
            raise ValueError(
                f"SlotDecoder.add: guidance must be of {ar_steps} AR steps, got "
                f"{len(image.guidance)}"
            )
        # As in ``ARSampler``: without guidance at the first step the rows draw independently.
        apart = state.rows == 2 and image.guidance[0] <= 1
        device = state.keys.device
        keys = [
            noise_keys([image.seed], [image.sample_id], stream=stream, device=device)
            for stream in (0, int(apart))[: state.rows]
        ]
        begin = self._sequence.prefill(image.start, state.rows)
        index = self._slots.index(None)
        guidance = torch.tensor(image.guidance, dtype=torch.float32, device="cpu")
        state.guidance[index, :ar_steps].copy_(guidance)
        state.keys[index].copy_(torch.cat(keys))
        state.step[index], state.ar_steps[index] = 0, ar_steps
        state.columns[index], state.apart[index] = begin.columns, apart
        state.hidden[index].copy_(begin.hidden)
        state.cache_of(index).copy_(begin.cache, begin.tokens)
        slot = Slot(image, ar_steps, self._sequence.patch_shape)
        slot._tokens = begin.tokens
        self._slots[index] = slot
        return slot

    def remove(self, slot: Slot[Start]) -> None:
        """Give up an image; one that has left already is passed over."""
        for index, other in enumerate(self._slots):
            if other is slot:
                self._slots[index] = None
                self._state.clear(index)

    @torch.no_grad()
    def advance(self) -> list[Slot[Start]]:
        """Sample the next patch of all images, and wait for it.

        Returns:
            All images that were there, with their new patches. Those that are ``finished`` have
            left their slots; one whose prediction is not finite has an error.

        Raises:
            RuntimeError: the device has failed.
        """
        self._close_gaps()
        active = self.active
        if not active:
            return []
        size = next(size for size in self._sizes if size >= len(active))
        if size not in self._buckets:
            with torch.inference_mode(False):
                self._buckets[size] = _Bucket(self._state, self._sequence, self._schedule, size)
        bucket = self._buckets[size]
        results = bucket.sample()
        if any(slot.step + 1 < slot.ar_steps for slot in active):
            bucket.feed()  # before the host waits for the patches
        packed, peaks = (result.cpu() for result in results)
        bucket.check()
        P = self._sequence.patch_shape[0]
        for index, (slot, peak) in enumerate(zip(active, peaks.tolist(), strict=False)):
            slot.packed[slot.step * P : (slot.step + 1) * P] = packed[index]
            slot._tokens += P
            if not math.isfinite(peak):
                slot.error = NotFiniteError("SlotDecoder", {0: slot.step})
            slot.step += 1
        for slot in active:
            if slot.finished:
                self.remove(slot)
        return active

    def _close_gaps(self) -> None:
        """Move images so that the first slots hold all of them."""
        count = len(self.active)
        gaps = [i for i in range(count) if self._slots[i] is None]
        behind = (i for i in range(count, len(self._slots)) if self._slots[i] is not None)
        for gap, index in zip(gaps, behind, strict=True):
            slot = self._slots[index]
            assert slot is not None
            with torch.no_grad():
                self._state.move(index, gap, slot._tokens)
                self._state.clear(index)
            self._slots[gap], self._slots[index] = slot, None


def bucket_sizes(slots: int) -> Sequence[int]:
    """Powers of two below `slots`, and `slots`."""
    return [*(2**i for i in range((slots - 1).bit_length())), slots]
