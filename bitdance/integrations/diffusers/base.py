"""What both pipelines of diffusers share: loading, devices, callbacks, outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from typing_extensions import Self

from bitdance.io.json_files import read_json
from bitdance.models.loading.model_files import open_files
from bitdance.models.loading.release_layout import MODEL_INDEX
from bitdance.pipelines.base import BasePipeline

__all__ = ["BaseDiffusionPipeline", "refuse_quantized"]


class BaseDiffusionPipeline(DiffusionPipeline):
    """A pipeline of diffusers whose work one of this library does.

    Components are loaded, saved, cast, moved and offloaded as diffusers does it; seeds, batches and
    bits are those of the other pipeline, ``native``. One call runs at a time.
    """

    _callback_tensor_inputs: ClassVar = [*BasePipeline._callback_tensor_inputs]
    _sampled: ClassVar[tuple[str, ...]] = ()  # components that sampling uses, all at once
    _made: tuple[tuple[Any, ...], BasePipeline] | None = None
    _interrupt = False
    _guidance_scale: float | None = None
    _num_timesteps = 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load what ``save_pretrained`` has written, or a model in any other layout.

        Args:
            pretrained_model_name_or_path: folder or repository. What this class has saved is loaded
                by diffusers, with its arguments; other layouts by ``native``'s pipeline, with those
                of its ``from_pretrained``.
            **kwargs: arguments of the one or the other.

        Raises:
            CheckpointError: it is something else.
            FileNotFoundError: there is no such folder or repository.
        """
        # diffusers knows no subfolder, but the other pipeline reads its layout too.
        alone = kwargs.get("subfolder") is None
        if alone and _saved_by(cls.__name__, pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_native(cls._load_native(pretrained_model_name_or_path, **kwargs))

    @classmethod
    @abstractmethod
    def from_native(cls, pipeline: Any) -> Self:
        """The pipeline of diffusers with the parameters of one of this library.

        Args:
            pipeline: the pipeline, which is not changed, unless its decoder's parameters are: they
                are shared.

        Raises:
            ValueError: it is quantized.
        """

    @classmethod
    @abstractmethod
    def _load_native(cls, source: Any, **options: Any) -> BasePipeline:
        """A pipeline of this library from any layout."""

    @abstractmethod
    def _make_native(self) -> BasePipeline:
        """A pipeline of this library with today's components."""

    @property
    def native(self) -> Any:
        """The pipeline of this library with the same parameters, made again for new components."""
        parts = tuple(self.components.values())
        if self._made is None or any(a is not b for a, b in zip(self._made[0], parts, strict=True)):
            self._made = parts, self._make_native()
        for part in parts:
            if hasattr(part, "native"):
                _ = part.native  # brings layers that were replaced into the network
        return self._made[1]

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Raise: kernels read weights outside of the layers' forward, where these are absent.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: weights cannot be on the device for the forward of a layer "
            "only, since kernels read those of several layers; use enable_model_cpu_offload"
        )

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """Raise, as ``enable_sequential_cpu_offload`` does.

        Raises:
            NotImplementedError: always.
        """
        self.enable_sequential_cpu_offload()

    @property
    def interrupt(self) -> bool:
        """Whether the call is about to stop; set ``_interrupt`` in a callback."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float | None:
        """Guidance scale of the last call, None for the model's own."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """AR steps of the last call."""
        return self._num_timesteps

    def _run(
        self,
        *args: Any,
        return_dict: bool,
        callback_on_step_end: Callable[..., Any] | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        **kwargs: Any,
    ) -> Any:
        """Call the pipeline of this library, with each component on its device in its turn."""
        native = self.native
        self._interrupt, self._guidance_scale = False, kwargs.get("guidance_scale")
        names = callback_on_step_end_tensor_inputs
        names = getattr(callback_on_step_end, "tensor_inputs", names)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(
                f"{type(self).__name__}: callback_on_step_end must be a function, got "
                f"{type(callback_on_step_end).__name__}"
            )

        def on_step(
            pipeline: BasePipeline, step: int, timestep: int, tensors: dict[str, torch.Tensor]
        ) -> Mapping[str, torch.Tensor] | None:
            self._num_timesteps = step + timestep + 1
            changed = None
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, timestep, tensors)
            if self._interrupt:
                pipeline.interrupt = True
            return changed

        native.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        with self._placed(native):
            images = native(
                *args, return_dict=False, callback_on_step_end=on_step,
                callback_on_step_end_tensor_inputs=names, **kwargs,
            )[0]  # fmt: skip
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @contextmanager
    def _placed(self, native: Any) -> Iterator[None]:
        """Inside, offloaded components come to their device, first those that sampling uses."""
        sampled = [self.components[name] for name in self._sampled]
        native.execution_device = self._execution_device

        def before_decoding() -> None:
            if any(hasattr(module, "_hf_hook") for module in sampled):
                # What it keeps for the next call refers to weights that leave the device.
                native.sampler.workspaces.clear()
            _offload(sampled)
            _onload([self.components["autoencoder"]])

        _onload(sampled)
        native.before_decoding = before_decoding
        try:
            yield
        finally:
            native.before_decoding = None
            _offload([*sampled, self.components["autoencoder"]])


def _onload(modules: Sequence[Any]) -> None:
    for module in modules:
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(module)


def _offload(modules: Sequence[Any]) -> None:
    for module in modules:
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.init_hook(module)


def _saved_by(name: str, source: Any, options: Mapping[str, Any]) -> bool:
    """Whether a folder or repository has the index of a pipeline of this name."""
    files = open_files(
        source if isinstance(source, Path) else str(source),
        revision=options.get("revision"),
        local_files_only=bool(options.get("local_files_only")),
    )
    if MODEL_INDEX not in files.names:
        return False
    return bool(read_json(files.fetch([MODEL_INDEX]) / MODEL_INDEX).get("_class_name") == name)


def refuse_quantized(name: str, quantization: str | None) -> None:
    """Raise ValueError if a pipeline is quantized, whose layers diffusers could not save."""
    if quantization is not None:
        raise ValueError(f"{name}: pipeline must not be quantized, got one with {quantization}")
