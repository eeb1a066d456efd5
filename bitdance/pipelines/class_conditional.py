"""The class-conditional pipeline: from classes to images."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bitdance.io.validation import as_list, brief, exact_int, finite_number, is_single, parse_dtype
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig
from bitdance.models.loading.hub import locate
from bitdance.models.loading.model_folder import MAX_STEPS, write_folder
from bitdance.models.quantization import check_quantization, is_quantized
from bitdance.pipelines.arguments import (
    Generators,
    ImageShape,
    OutputType,
    Seeds,
    check_output_type,
    check_packed_latents,
    image_seeds,
    inference_steps,
    repeated,
)
from bitdance.pipelines.base import BasePipeline, Callback, ImagePipelineOutput
from bitdance.pipelines.class_conditional_files import load_file, load_folder
from bitdance.sampling.ar_sampler import OnStep
from bitdance.sampling.class_conditional import ClassConditionalSampler

__all__ = ["BitDancePipeline"]


class BitDancePipeline(BasePipeline):
    """Generates images of classes.

    Args:
        model: the networks.
        classes: names of the classes, "" for a class without one.
        num_inference_steps: default of calls.

    Attributes:
        model: the networks, a ``torch.nn.Module`` with the official parameter names.
        config: configuration of the model.
        classes: names of the classes.
        num_inference_steps: denoising steps per patch that a call takes by default.

    Example:
        >>> from bitdance import BitDancePipeline
        >>> pipe = BitDancePipeline.from_pretrained("fashion")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> images = pipe(["sneaker", "bag"], num_inference_steps=2, seed=0).images
        >>> images[0].size
        (32, 32)
    """

    sampler: ClassConditionalSampler

    def __init__(
        self,
        model: BitDanceModel,
        classes: Sequence[str] | None = None,
        *,
        num_inference_steps: int = 100,
    ) -> None:
        super().__init__(ClassConditionalSampler(model))
        self.config = model.config
        self.num_inference_steps = exact_int(
            "BitDancePipeline", "num_inference_steps", num_inference_steps, 1, MAX_STEPS
        )
        self.classes = tuple(classes) if classes is not None else _class_names(model.config)
        if len(self.classes) != self.config.num_classes:
            raise ValueError(
                f"BitDancePipeline: classes must be {self.config.num_classes} names, got "
                f"{len(self.classes)}"
            )

    @property
    def model(self) -> BitDanceModel:
        """The networks, with the official parameter names."""
        return self.sampler.model

    @property
    def _autoencoder(self) -> BinaryAutoencoder:
        return self.model.vae

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return self.model.blocks

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        autoencoder: str | Path | None = None,
        config: ModelConfig | str | Path | None = None,
        weights: str = "ema",
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        quantization: str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = False,
    ) -> BitDancePipeline:
        """Load a model; either all of it is loaded or nothing.

        Weights go to the device one at a time, and are rounded on the way if `quantization` says
        so; there is no second copy of the model.

        Args:
            source: "fashion", the small model of the package ``bitdance-models``; a folder written
                by ``save_pretrained``; an official checkpoint (``.pt``) or a ``.safetensors`` file;
                the id "owner/name" of a Hugging Face repository that holds such a folder, or
                "owner/name/file" for such a file of it (needs ``pip install 'bitdance[hub]'``).
            autoencoder: the image autoencoder, if `source` is a file without its weights, or to
                replace them; a source of ``BinaryAutoencoder.from_pretrained``.
            config: configuration of a file that has none: a ``ModelConfig``, the name of a preset,
                or a ``.json`` or ``.toml`` file with fields of a ``ModelConfig``; shapes fill in
                the rest. An official ``.pt`` has its training arguments, and a file
                ``<name>_config.json`` beside the weights is read; a contradiction is an error.
                Without any of them the shapes must be those of a preset.
            weights: "ema" or "model", for files that hold both.
            dtype: dtype of the parameters or its name, by default float32.
            torch_dtype: the older name of `dtype`.
            quantization: "fp8_weight_only", "fp8" or "int8_weight_only" to round weights, see
                ``quantize``; None for none.
            device: device of the model.
            revision: revision of a Hugging Face repository.
            subfolder: folder of the model in `source`.
            local_files_only: use only files that were downloaded before.

        Raises:
            FileNotFoundError: there is no such file, folder or repository.
            CheckpointError: the files are damaged, hold code, or do not fit; nothing is loaded.
            ValueError: an argument is out of range.
        """
        if weights not in ("ema", "model"):
            raise ValueError(f"from_pretrained: weights must be 'ema' or 'model', got {weights!r}")
        parsed = parse_dtype("from_pretrained", dtype, torch_dtype)
        if quantization is not None:
            check_quantization("from_pretrained", quantization)
        path = locate(
            source, revision=revision, local_files_only=local_files_only, subfolder=subfolder
        )
        if path.is_dir():
            for name, value in (("autoencoder", autoencoder), ("config", config)):
                if value is not None:
                    raise ValueError(
                        f"from_pretrained: {name} must be left out if source is a folder, which "
                        f"has its own, got {brief(value)}"
                    )
            model, extra = load_folder(path, parsed, device=device, quantization=quantization)
        else:
            own = None
            if autoencoder is not None:
                own = locate(autoencoder, local_files_only=local_files_only, autoencoder=True)
            model, extra = load_file(
                path, parsed, autoencoder=own, config=config, prefer=weights, device=device,
                quantization=quantization,
            )  # fmt: skip
        return cls(model, **extra).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and the weights (safetensors) into `folder`.

        The weights' file is named after its checksum and the configuration that points to it is
        replaced last, so an interrupted save leaves the earlier model loadable. Any number of
        processes may save at once. Only what this library wrote is replaced or removed.

        Raises:
            FileExistsError: the folder holds the configuration of something else; nothing is
                written.
            OSError: the folder cannot be written or the disk is full; what was there is unchanged.
            ValueError: a weight is not finite, or the model is quantized.
        """
        if is_quantized(self.model):
            raise ValueError("save_pretrained: model must not be quantized, got one that is")
        state = self.model.state_dict()
        write_folder(Path(folder), state, self.config, self.classes, self.num_inference_steps)

    def label(self, name: str | int) -> int:
        """Number of a class given by name or number.

        Raises:
            TypeError: `name` is neither text nor an integer.
            ValueError: there is no such class.
        """
        count = self.config.num_classes
        if isinstance(name, str):
            text = name.strip().lower()
            lower = [c.lower() for c in self.classes]
            if text and text in lower:  # a name may look like a number
                return lower.index(text)
            near = [c for c in self.classes if text and text in c.lower()][:5]
            digits = text.removeprefix("-")
            number = int(text) if digits.isdecimal() and len(digits) < 20 else None
        else:
            number, near = exact_int("label", "class", name), []
        if number is None or not 0 <= number < count:
            hint = f"; perhaps {', '.join(near)}?" if near else ""
            raise ValueError(
                f"label: class must be 0 to {count - 1} or a name, got {brief(name)}{hint}"
            )
        return number

    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: Literal["linear", "constant"] = "linear",
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        seed: Seeds | None = None,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        use_kernels: bool = True,
    ) -> ImagePipelineOutput:
        """Generate images of classes.

        An image depends on its class, its seed and its sample id and on nothing else: its noise is
        bit for bit the same alone and in any batch, the image the same within rounding.

        Args:
            class_labels: numbers or names of classes, or a single one.
            num_inference_steps: denoising steps per patch, before the final one;
                by default those saved with the model, else 100.
            guidance_scale: guidance; 1 or less is none. By default the model's
                published scale.
            guidance_schedule: "linear" grows with the AR step as in the published sampler.
            num_images_per_prompt: images of each class, side by side in the output.
            generator: source of one 64-bit seed for all images, or one generator per image. Its
                next 64-bit number is the seed.
            seed: in place of `generator`, one 64-bit seed for all images, or one per image; 0 if
                neither is given.
            sample_ids: ids that tell images of one seed apart; by default 0, 1, 2, ... with one
                seed, and 0 for every image with a seed of its own.
            batch_size: images at a time; by default all.
            output_type: "pil": a list of images; "np": float32 [n, H, W, 3] in [0, 1]; "pt":
                float32 [n, 3, H, W] in [0, 1]; "uint8": a tensor [n, 3, H, W]; "latent": packed
                bits uint8 [n, tokens, ceil(C / 8)] in generation order, which ``decode`` takes.
            return_dict: return an ``ImagePipelineOutput``; else the tuple (images,).
            callback_on_step_end: called after every AR step as f(pipeline, step, timestep,
                callback_kwargs), with the number of the step in its batch, the number of steps that
                are left, and a dict of the tensors named in
                `callback_on_step_end_tensor_inputs`. It returns that dict; sampling continues from
                the latents in it.
            callback_on_step_end_tensor_inputs: names among "latents", float32 [rows, P, C] of +1
                and -1; "packed_latents", uint8 [rows, P, ceil(C / 8)], the same as bits; and
                "generated_latents", uint8 [n, tokens so far, ceil(C / 8)] of the batch's images,
                which ``preview`` takes and a callback must not change. With guidance conditional
                rows come first; latents of these alone serve both halves.
            use_kernels: False runs reference ops and the head as published, for comparison.

        Returns:
            The images, on the CPU.

        Raises:
            TypeError: an argument has another type; nothing is computed.
            ValueError: an argument is out of range; nothing is computed.
            NotFiniteError: the model computes NaN or infinity; names the images.
            GenerationCancelled: ``interrupt`` was set.
        """
        function = "BitDancePipeline"
        given: list[Any] = (
            [class_labels]
            if is_single(class_labels)
            else as_list(function, "class_labels", class_labels)
        )
        labels = repeated(function, [self.label(name) for name in given], num_images_per_prompt)
        steps = inference_steps(function, num_inference_steps, self.num_inference_steps)
        scale = self.config.cfg_scale if guidance_scale is None else guidance_scale
        scale = finite_number(function, "guidance_scale", scale)
        if guidance_schedule not in ("linear", "constant"):
            raise ValueError(
                f"{function}: guidance_schedule must be 'linear' or 'constant', got "
                f"{brief(guidance_schedule)}"
            )

        def sample(batch: slice, seeds: list[int], ids: list[int], on_step: OnStep) -> torch.Tensor:
            return self.sampler.sample(
                torch.tensor(labels[batch], dtype=torch.int64, device=self.device),
                num_inference_steps=steps,
                guidance_scale=scale,
                guidance_schedule=guidance_schedule,
                seeds=seeds,
                sample_ids=ids,
                on_step=on_step,
                use_kernels=use_kernels,
            )

        return self._generate(
            sample,
            self._image_shape,
            len(labels),
            generator=generator,
            seed=seed,
            sample_ids=sample_ids,
            batch_size=batch_size,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

    def decode(
        self,
        packed_latents: torch.Tensor,
        *,
        generator: Generators | None = None,
        seed: Seeds | None = None,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: Literal["pil", "np", "pt", "uint8"] = "pil",
    ) -> Any:
        """Decode packed latents, the output of a call with output_type="latent", to images.

        Args:
            packed_latents: uint8 [n, tokens, ceil(C / 8)] in generation order.
            generator: as for a call of the pipeline; used by a decoder that takes noise.
            seed: as for a call of the pipeline.
            sample_ids: as for a call of the pipeline.
            batch_size: images at a time; by default all.
            output_type: as for a call of the pipeline.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity; names the images.
            TypeError: `packed_latents` is no tensor.
            ValueError: `packed_latents` has another dtype or shape.
        """
        shape = self._image_shape
        packed = check_packed_latents(packed_latents, shape)
        check_output_type("decode", output_type, ("pil", "np", "pt", "uint8"))
        seeds, ids = image_seeds("decode", seed, generator, sample_ids, len(packed))
        return self._decode(packed, shape, seeds, ids, batch_size, output_type, "decode")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images to packed latents, which ``decode`` takes.

        Args:
            images: floating point [n, 3, H, W] in [0, 1], of the model's resolution.

        Returns:
            uint8 [n, tokens, ceil(C / 8)] in generation order, on the CPU.

        Raises:
            TypeError: `images` is no floating-point tensor.
            ValueError: `images` has another shape, or is not finite.
        """
        return self._encode(images, self.model.encode)

    def preview(
        self,
        generated_latents: torch.Tensor,
        *,
        generator: Generators | None = None,
        seed: Seeds | None = None,
        sample_ids: Sequence[int] | None = None,
        output_type: Literal["pil", "np", "pt", "uint8"] = "pil",
    ) -> Any:
        """Decode the tokens that a running call has generated so far.

        Patches that are not generated yet are gray, and decoded as zeros, which colors the pixels
        next to them. The preview of the last step is the image.

        Args:
            generated_latents: uint8 [n, tokens so far, ceil(C / 8)], as a callback gets them.
            generator: as for a call of the pipeline; used by a decoder that takes noise.
            seed: as for a call of the pipeline.
            sample_ids: as for a call of the pipeline; by default those of a call's first batch.
            output_type: as for a call of the pipeline.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity; names the images.
            TypeError: `generated_latents` is no tensor.
            ValueError: `generated_latents` has another dtype, more tokens than an image, or other
                bits.
        """
        shape = self._image_shape
        check_output_type("preview", output_type, ("pil", "np", "pt", "uint8"))
        latents = check_packed_latents(generated_latents, shape, complete=False)
        seeds, ids = image_seeds("preview", seed, generator, sample_ids, len(latents))
        return self._preview(latents, shape, seeds, ids, output_type)

    @property
    def _image_shape(self) -> ImageShape:
        config = self.config
        side = config.resolution
        return ImageShape(
            tokens=config.tokens,
            bits=config.token_bits,
            ar_steps=config.ar_steps,
            pixels=(config.autoencoder.out_ch, side, side),
            to_latents=self.model.to_latents,
        )


def _class_names(config: ModelConfig) -> tuple[str, ...]:
    if config.num_classes != 1000:
        return ("",) * config.num_classes
    text = resources.files("bitdance.pipelines").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
