"""The class-conditional pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from bitdance.integrations.diffusers.base import BaseDiffusionPipeline, refuse_quantized
from bitdance.integrations.diffusers.components import BitDanceAutoencoder, BitDanceTransformer
from bitdance.integrations.diffusers.native import MovedClassPipeline
from bitdance.integrations.diffusers.scheduler import BitDanceScheduler, with_time_shift
from bitdance.models.quantization import quantization_of
from bitdance.pipelines.class_conditional import BitDancePipeline

__all__ = ["BitDanceClassDiffusionPipeline"]


class BitDanceClassDiffusionPipeline(BaseDiffusionPipeline):
    """Images of classes, as a pipeline of diffusers.

    Args:
        transformer: the model without its autoencoder.
        autoencoder: the image autoencoder.
        classes: names of the classes, "" for a class without one.
        num_inference_steps: denoising steps per patch that a call takes by default.
        scheduler: times of the denoising steps; by default those of the model.
    """

    _optional_components: ClassVar = ["scheduler"]
    model_cpu_offload_seq = "transformer->autoencoder"
    _sampled: ClassVar = ("transformer",)

    def __init__(
        self,
        transformer: BitDanceTransformer,
        autoencoder: BitDanceAutoencoder,
        classes: Sequence[str] | None = None,
        num_inference_steps: int = 100,
        scheduler: BitDanceScheduler | None = None,
    ) -> None:
        super().__init__()
        scheduler = scheduler or BitDanceScheduler(transformer.native.config.time_shift)
        self.register_modules(transformer=transformer, autoencoder=autoencoder, scheduler=scheduler)
        self.register_to_config(
            classes=None if classes is None else list(classes),
            num_inference_steps=num_inference_steps,
        )

    @classmethod
    def from_native(cls, pipeline: BitDancePipeline) -> Self:
        """The pipeline of diffusers with the parameters of one of this library.

        Args:
            pipeline: the pipeline.

        Raises:
            ValueError: it is quantized.
        """
        refuse_quantized(f"{cls.__name__}.from_native", quantization_of(pipeline.model))
        model, config = pipeline.model, pipeline.config
        return cls(
            BitDanceTransformer.of(model, {"model": config.to_dict()}),
            BitDanceAutoencoder.of(model.vae, config.autoencoder.to_dict()),
            pipeline.classes,
            pipeline.num_inference_steps,
        )

    @classmethod
    def _load_native(cls, source: Any, **options: Any) -> BitDancePipeline:
        return BitDancePipeline.from_pretrained(source, **options)

    def _make_native(self) -> MovedClassPipeline:
        model = self.transformer.native
        model.vae = self.autoencoder.native
        model = with_time_shift(model, "head.net", self.scheduler.config.time_shift)
        self.transformer.register_to_config(model=model.config.to_dict())
        config = self.config
        steps = config.num_inference_steps
        return MovedClassPipeline(model, config.classes, num_inference_steps=steps)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate images of classes.

        Arguments and their defaults are those of ``bitdance.BitDancePipeline``, which describes
        them and the errors; `generator` may also be None, for the seed 0.

        Returns:
            diffusers' ``ImagePipelineOutput``, or the tuple (images,).
        """
        return self._run(
            class_labels, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, generator=generator,
            output_type=output_type, return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
