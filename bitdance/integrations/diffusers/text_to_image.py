"""The text-to-image pipeline of diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from bitdance.integrations.diffusers.base import BaseDiffusionPipeline, refuse_quantized
from bitdance.integrations.diffusers.components import (
    BitDanceAutoencoder,
    BitDanceDiffusionHead,
    BitDanceProjector,
    BitDanceTextEncoder,
)
from bitdance.integrations.diffusers.native import MovedT2IPipeline
from bitdance.integrations.diffusers.scheduler import BitDanceScheduler, with_time_shift
from bitdance.models.loading.meta_device import build_on_meta
from bitdance.models.quantization import quantization_of
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.pipelines.text_to_image_files import SamplingConfig

__all__ = ["BitDanceT2IDiffusionPipeline"]


class BitDanceT2IDiffusionPipeline(BaseDiffusionPipeline):
    """Images of prompts, as a pipeline of diffusers.

    Its folders have the layout of other converted models, and ``bitdance.BitDanceT2IPipeline``
    loads them too.

    Args:
        tokenizer: tokenizer of texts, of transformers.
        text_encoder: the language model.
        projector: the projector from tokens to the language model.
        diffusion_head: the diffusion head.
        autoencoder: the image autoencoder.
        sampling: size of images, steps and guidance by default: fields of ``SamplingConfig``.
        scheduler: times of the denoising steps; by default those of the diffusion head.
    """

    _optional_components: ClassVar = ["scheduler"]
    model_cpu_offload_seq = "text_encoder->autoencoder"
    _sampled: ClassVar = ("text_encoder", "projector", "diffusion_head")

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: BitDanceTextEncoder,
        projector: BitDanceProjector,
        diffusion_head: BitDanceDiffusionHead,
        autoencoder: BitDanceAutoencoder,
        sampling: dict[str, Any] | None = None,
        scheduler: BitDanceScheduler | None = None,
    ) -> None:
        super().__init__()
        scheduler = scheduler or BitDanceScheduler(diffusion_head.native.config.time_shift)
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, projector=projector,
            diffusion_head=diffusion_head, autoencoder=autoencoder, scheduler=scheduler,
        )  # fmt: skip
        self.register_to_config(sampling=dataclasses.asdict(SamplingConfig(**(sampling or {}))))

    @classmethod
    def from_native(cls, pipeline: BitDanceT2IPipeline) -> Self:
        """The pipeline of diffusers with the parameters of one of this library.

        Args:
            pipeline: the pipeline. Its tokenizer must be one of transformers to be saved; one of
                tokenizers becomes such a one where transformers is installed.

        Raises:
            ValueError: it is quantized.
        """
        refuse_quantized(f"{cls.__name__}.from_native", quantization_of(pipeline.model))
        model, config = pipeline.model, pipeline.config
        head = dataclasses.asdict(config.head)
        del head["architecture"]
        bits = {"in_dim": config.autoencoder.z_channels, "out_dim": config.llm.hidden_size}
        return cls(
            _transformers_tokenizer(pipeline.tokenizer),
            BitDanceTextEncoder.of(model.llm_model, config.llm.to_dict()),
            BitDanceProjector.of(model.embed_vision_mlp, bits),
            BitDanceDiffusionHead.of(
                model.vision_head, {**head, "parallel_num": config.parallel_num}
            ),
            BitDanceAutoencoder.of(model.ae, config.autoencoder.to_dict()),
            dataclasses.asdict(pipeline.sampling),
        )

    @classmethod
    def _load_native(cls, source: Any, **options: Any) -> BitDanceT2IPipeline:
        return BitDanceT2IPipeline.from_pretrained(source, **options)

    def _make_native(self) -> MovedT2IPipeline:
        llm, shift = self.text_encoder.native, self.scheduler.config.time_shift
        head = with_time_shift(self.diffusion_head.native, "net", shift)
        self.diffusion_head.register_to_config(time_shift=shift)
        config = TextToImageConfig(
            llm.config, head.config, self.autoencoder.native.config,
            self.diffusion_head.config.parallel_num,
        )  # fmt: skip
        model = build_on_meta(
            lambda: TextToImageModel(config, dtype=torch.float32, device="meta"),
            type(self).__name__,
        )
        model.llm_model, model.vision_head = llm, head
        model.ae, model.embed_vision_mlp = self.autoencoder.native, self.projector.native
        return MovedT2IPipeline(model, self.tokenizer, SamplingConfig(**self.config.sampling))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate images of prompts.

        Arguments and their defaults are those of ``bitdance.BitDanceT2IPipeline``, which describes
        them and the errors; `generator` may also be None, for the seed 0.

        Returns:
            diffusers' ``ImagePipelineOutput``, or the tuple (images,).
        """
        return self._run(
            prompt, negative_prompt=negative_prompt, height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, generator=generator,
            output_type=output_type, return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip


def _transformers_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer of transformers for one of tokenizers, where that library is installed."""
    if type(tokenizer).__module__.split(".")[0] != "tokenizers":
        return tokenizer
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
