"""The text-to-image pipeline: from prompts to images."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bitdance.io.files import sync
from bitdance.io.staging import StagedFolder
from bitdance.io.validation import as_list, brief, exact_int, finite_number, is_single, parse_dtype
from bitdance.io.weights import is_finite
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.loading.hub import locate
from bitdance.models.quantization import check_quantization, quantization_of
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.token_order import latents_to_tokens
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
from bitdance.pipelines.prompts import (
    NO_PROMPT,
    PROMPT,
    TextTokenizer,
    check_tokenizers,
    count_queries,
    image_prefix,
    load_tokenizer,
    save_tokenizer,
    token_ids,
)
from bitdance.pipelines.release import Release, locate_tokenizer
from bitdance.pipelines.text_to_image_files import SamplingConfig, save_release
from bitdance.sampling.ar_sampler import OnStep
from bitdance.sampling.text_to_image import TextToImageSampler

__all__ = ["BitDanceT2IPipeline"]


class BitDanceT2IPipeline(BasePipeline):
    """Generates images of prompts.

    Any number of threads may use one pipeline at a time, and a callback may call it too: each call
    has buffers of its own, and every image has the bits that it has alone. Calls take turns at
    `tokenizer`, which need not be safe for threads.

    Args:
        model: the networks.
        tokenizer: tokenizer of texts, for example from ``transformers.AutoTokenizer``.
        sampling: size of images, steps and guidance by default.

    Attributes:
        model: the networks, a ``torch.nn.Module`` with the official parameter names.
        config: configuration of the model.
        tokenizer: tokenizer of texts.
        sampling: size of images, steps and guidance by default.
    """

    sampler: TextToImageSampler

    def __init__(
        self, model: TextToImageModel, tokenizer: TextTokenizer,
        sampling: SamplingConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__(TextToImageSampler(model))
        self.sampling = sampling or SamplingConfig()
        self.config, self.tokenizer = model.config, tokenizer
        self._tokenizing = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name != "_tokenizing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _tokenizing=threading.Lock())

    @property
    def model(self) -> TextToImageModel:
        """The networks, with the official parameter names."""
        return self.sampler.model

    @property
    def _autoencoder(self) -> BinaryAutoencoder:
        return self.model.ae

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return self.model.blocks

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        autoencoder: str | Path | None = None,
        tokenizer: TextTokenizer | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        quantization: str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = False,
    ) -> BitDanceT2IPipeline:
        """Load a published model; either all of it is loaded or nothing.

        Any layout of docs/checkpoints.md will do: the authors', a folder of diffusers, or the three
        files for ComfyUI. Of a repository the configuration and the text tokenizer are downloaded
        and judged first, then the weights that are needed. Weights go to the device one at a time,
        and are rounded on the way if `quantization` says so; there is no second copy of the model.
        Float8 weights of files stay as they are where `quantization` is float8 too.

        Args:
            source: folder; "emoji", where the package ``bitdance-models`` has it; or the id
                "owner/name" of a Hugging Face repository (needs ``pip install 'bitdance[hub]'``).
            autoencoder: another image autoencoder, a source of
                ``BinaryAutoencoder.from_pretrained``.
            tokenizer: tokenizer of texts, or the folder or repository of a model that has one; by
                default that of the model. To load it needs ``pip install tokenizers``, or
                transformers where it has no ``tokenizer.json``.
            dtype: dtype of the parameters or its name, by default float32.
            torch_dtype: the older name of `dtype`.
            quantization: "fp8_weight_only", "fp8" or "int8_weight_only" to round weights, see
                ``quantize``; None for none.
            device: device of the model.
            revision: revision of a Hugging Face repository.
            subfolder: folder of the model in `source`.
            local_files_only: use only files that were downloaded before.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            CheckpointError: a file is damaged, or does not fit the configuration.
            ImportError: `tokenizer` is no tokenizer, and there is no package that loads it.
            ValueError: the model cannot be quantized, see ``quantize``.
        """
        parsed = parse_dtype("from_pretrained", dtype, torch_dtype)
        if quantization is not None:
            check_quantization("from_pretrained", quantization)
        if tokenizer is None or isinstance(tokenizer, str | Path):
            check_tokenizers()  # before anything is downloaded
        release = Release.open(
            source, revision=revision, local_files_only=local_files_only, subfolder=subfolder,
            with_tokenizer=tokenizer is None,
        )  # fmt: skip
        if tokenizer is None:
            text = load_tokenizer(release.tokenizer_folder)
        elif isinstance(tokenizer, str | Path):
            text = load_tokenizer(locate_tokenizer(tokenizer, local_files_only=local_files_only))
        else:
            text = tokenizer
        config, sampling = release.config(lambda: count_queries(text)), release.sampling
        own = None
        if autoencoder is not None:
            own = locate(autoencoder, local_files_only=local_files_only, autoencoder=True)
        model = release.load(config, parsed, device, autoencoder=own, quantization=quantization)
        return cls(model, text, sampling).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer to a folder that ``from_pretrained`` reads.

        The folder appears completely or not at all, in the form of a release.

        Args:
            folder: must not exist, or be empty.

        Raises:
            FileExistsError: the folder is not empty.
            OSError: the disk is full, or the folder cannot be written.
            TypeError: the tokenizer cannot be saved.
            ValueError: the model is quantized, or weights are not finite.
        """
        if quantization_of(self.model) is not None:
            raise ValueError("save_pretrained: model must not be quantized, got one that is")
        broken = [k for k, tensor in self.model.state_dict().items() if not is_finite(tensor)]
        if broken:
            raise ValueError(f"save_pretrained: weights must be finite, got others in {broken[0]}")
        staged = StagedFolder(folder)
        try:
            save_release(self.model, self.sampling, staged.path)
            save_tokenizer(self.tokenizer, staged.path)
            for path in staged.path.rglob("*"):  # what the tokenizer has written
                sync(path)
            staged.commit()
        finally:
            staged.discard()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of an image of that many pixels, vertically and horizontally.

        Raises:
            TypeError: a side is no integer.
            ValueError: it is not made of whole patches.
        """
        factor = self.config.autoencoder.downsampling
        side = factor * math.isqrt(self.config.parallel_num)
        sides = []
        for name, value in (("height", height), ("width", width)):
            pixels = exact_int("grid", name, value)
            if pixels < side or pixels % side:
                raise ValueError(f"{name} must be a multiple of {side} pixels, got {pixels}")
            sides.append(pixels // factor)
        return sides[0], sides[1]

    def token_ids(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], grid: tuple[int, int]
    ) -> tuple[list[int], list[list[int]], list[list[int]]]:
        """Token ids before an image, as the sampler takes them.

        Args:
            prompts: texts of what to draw.
            negative_prompts: texts that guidance leads away from; an empty one is the text that
                training put in place of a prompt.
            grid: tokens of the image, vertically and horizontally.

        Returns:
            Ids of the image's prefix, of every prompt and of every negative prompt.

        Raises:
            TypeError: the tokenizer returns something else than ids.
            ValueError: the tokenizer does not know images of that size.
        """
        with self._tokenizing:
            prefix = image_prefix(self.tokenizer, grid, self.config.parallel_num)
            encoded = [token_ids(self.tokenizer, PROMPT.format(text)) for text in prompts]
            avoided = [
                token_ids(self.tokenizer, PROMPT.format(text) if text else NO_PROMPT)
                for text in negative_prompts
            ]
        return prefix, encoded, avoided

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        seed: Seeds | None = None,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput:
        """Generate images of prompts.

        An image depends on its prompts, its seed and its sample id and on nothing else, as with
        ``BitDancePipeline``.

        Args:
            prompt: text of what to draw, or several.
            num_inference_steps: denoising steps per patch, before the final one; by default the
                model's own, as are the guidance scale and the size.
            guidance_scale: guidance scale of all AR steps; 1 or less turns guidance off.
            negative_prompt: text that guidance leads away from, one for all prompts or one per
                prompt. By default, and if it is empty, the text that training put in place of a
                prompt.
            height: height in pixels.
            width: width in pixels.
            num_images_per_prompt: images of each prompt, side by side in the output.
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

        Returns:
            The images, on the CPU.

        Raises:
            TypeError: an argument has another type; nothing is computed.
            ValueError: an argument is out of range, the tokenizer does not know images of that
                size, or a prompt is longer than the model's positions; nothing is computed.
            NotFiniteError: the model computes NaN or infinity; names the images.
            GenerationCancelled: ``interrupt`` was set.
        """
        function = "BitDanceT2IPipeline"
        prompts = _texts("prompt", prompt)
        own = self.sampling
        grid = self._grid_or_default(height, width)
        scale = own.guidance_scale if guidance_scale is None else guidance_scale
        negatives = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise ValueError(
                f"{function}: negative_prompt must be one text, or one per prompt "
                f"({len(prompts)}), got {len(negatives)}"
            )
        steps = inference_steps(function, num_inference_steps, own.num_inference_steps)
        scale = finite_number(function, "guidance_scale", scale)
        prefix, encoded, avoided = self.token_ids(prompts, negatives, grid)
        encoded, avoided = (
            repeated(function, ids, num_images_per_prompt) for ids in (encoded, avoided)
        )
        # Before the first batch is sampled, not after it.
        self.sampler.token_rows(
            encoded, prefix, grid=grid, negative_prompts=avoided, guided=scale > 1
        )

        def sample(batch: slice, seeds: list[int], ids: list[int], on_step: OnStep) -> torch.Tensor:
            return self.sampler.sample(
                encoded[batch],
                prefix,
                grid=grid,
                negative_prompts=avoided[batch],
                num_inference_steps=steps,
                guidance_scale=scale,
                seeds=seeds,
                sample_ids=ids,
                on_step=on_step,
            )

        return self._generate(
            sample,
            self._image_shape(grid),
            len(encoded),
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
        height: int | None = None,
        width: int | None = None,
        generator: Generators | None = None,
        seed: Seeds | None = None,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: Literal["pil", "np", "pt", "uint8"] = "pil",
    ) -> Any:
        """Decode packed latents, the output of a call with output_type="latent", to images.

        Args:
            packed_latents: uint8 [n, tokens, ceil(C / 8)] in generation order.
            height: height in pixels, by default the model's own.
            width: width in pixels, by default the model's own.
            generator: as for a call of the pipeline; used by a decoder that takes noise.
            seed: as for a call of the pipeline.
            sample_ids: as for a call of the pipeline.
            batch_size: images at a time; by default all.
            output_type: as for a call of the pipeline.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity; names the images.
            TypeError: `packed_latents` is no tensor.
            ValueError: `packed_latents` has another dtype, or is not of images of that size.
        """
        shape = self._image_shape(self._grid_or_default(height, width))
        packed = check_packed_latents(packed_latents, shape)
        check_output_type("decode", output_type, ("pil", "np", "pt", "uint8"))
        seeds, ids = image_seeds("decode", seed, generator, sample_ids, len(packed))
        return self._decode(packed, shape, seeds, ids, batch_size, output_type, "decode")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images to packed latents, which ``decode`` takes.

        Args:
            images: floating point [n, 3, H, W] in [0, 1], of whole patches.

        Returns:
            uint8 [n, tokens, ceil(C / 8)] in generation order, on the CPU.

        Raises:
            TypeError: `images` is no floating-point tensor.
            ValueError: `images` has another shape, or is not finite.
        """

        def to_tokens(scaled: torch.Tensor) -> torch.Tensor:
            grid = self.grid(*scaled.shape[2:])
            latents = self.model.ae.encode(scaled)
            return latents_to_tokens(latents, 1, self.model.order(grid))

        return self._encode(images, to_tokens)

    def preview(
        self,
        generated_latents: torch.Tensor,
        *,
        height: int | None = None,
        width: int | None = None,
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
            height: height in pixels, by default the model's own.
            width: width in pixels, by default the model's own.
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
        shape = self._image_shape(self._grid_or_default(height, width))
        check_output_type("preview", output_type, ("pil", "np", "pt", "uint8"))
        latents = check_packed_latents(generated_latents, shape, complete=False)
        seeds, ids = image_seeds("preview", seed, generator, sample_ids, len(latents))
        return self._preview(latents, shape, seeds, ids, output_type)

    def _grid_or_default(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.sampling
        return self.grid(
            own.height if height is None else height, own.width if width is None else width
        )

    def _image_shape(self, grid: tuple[int, int]) -> ImageShape:
        config = self.config.autoencoder
        height, width = (side * config.downsampling for side in grid)
        return ImageShape(
            tokens=grid[0] * grid[1],
            bits=config.z_channels,
            ar_steps=grid[0] * grid[1] // self.config.parallel_num,
            pixels=(config.out_ch, height, width),
            to_latents=lambda tokens: self.model.to_latents(tokens, grid),
        )


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    """One text or several as a list."""
    texts: list[Any] = [given] if is_single(given) else as_list("BitDanceT2IPipeline", name, given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"BitDanceT2IPipeline: {name} must be text, one or several, got {brief(text)}"
            )
    return texts
