"""The text-to-image half of ``patch_official``: the authors' pipeline, matched and replaced.

The pipeline is a plain object that holds a Hugging Face ``Qwen3ForCausalLM``, the head, the
tokenizer and a projector. Its loop runs the language model twice a step, once for each half of
guidance, with caches that grow; ours runs both halves as one batch in a static cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.integrations.official.matching import (
    PatchError,
    Replacement,
    decoder_methods,
    graft,
    head_methods,
    matched,
    require,
    require_value,
    same_layer,
)
from bitdance.io.progress import progress_bar
from bitdance.models.qwen3 import Qwen3Config, Qwen3Model, rope_table
from bitdance.pipelines.prompts import image_prefix

__all__ = ["PipelineMethods", "pipeline_methods"]


class PipelineMethods:
    """The authors' loop over patches, on these kernels.

    Args:
        theirs: the authors' pipeline.
        trunk: trunk with the layers of its language model.
    """

    def __init__(self, theirs: Any, trunk: Qwen3Model) -> None:
        self.theirs, self.trunk = theirs, trunk

    @torch.no_grad()
    def gen_image(
        self,
        cond_prompt: str,
        uncond_prompt: str | None = None,
        guidance_scale: float = 1.0,
        num_sampling_steps: int = 50,
        max_length: int = 64,
        num_images: int = 1,
        image_size: Sequence[int] = (256, 256),
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Images of one prompt, drawn by torch's generator.

        Args:
            cond_prompt: text of what to draw.
            uncond_prompt: text that guidance leads away from; needed with guidance.
            guidance_scale: at most 1 is no guidance.
            num_sampling_steps: noisy steps of the head.
            max_length: tokens of an image.
            num_images: number of images.
            image_size: height and width in pixels.
            show_progress: show a progress bar.

        Returns:
            [num_images, 3, height, width], not clamped.

        Raises:
            ValueError: the tokenizer has no token for an image of that size, or there is no
                `uncond_prompt` for guidance.
        """
        theirs, trunk, P = self.theirs, self.trunk, self.theirs.parallel_num
        guided = guidance_scale > 1
        if guided and uncond_prompt is None:
            raise ValueError("gen_image: uncond_prompt must be a text with guidance, got None")
        height, width = (side // theirs.vae_patch_size for side in image_size)
        ps = getattr(theirs, "ps", 1)
        position = theirs.get_2d_embed(height, width, ps=ps)[None]
        begin = image_prefix(theirs.tokenizer, (height, width), P)
        texts = [cond_prompt, uncond_prompt] if guided else [cond_prompt]
        device = trunk.embed_tokens.weight.device
        ids = [
            torch.tensor([*theirs.tokenizer.encode(t), *begin], dtype=torch.int64, device=device)
            for t in texts
        ]
        embedded = [trunk.embed_tokens(row) for row in ids]

        rows = torch.arange(len(texts), dtype=torch.int64, device=device)
        rows = rows.repeat_interleave(num_images)
        steps = max_length // P
        # The last patch is not fed back.
        longest = max(map(len, ids)) + max(0, steps - 1) * P
        cache = trunk.allocate(len(rows), longest)
        freqs = rope_table(longest, theirs.llm_model.model.rotary_emb.inv_freq.to(device))
        trunk.prefill([x[:-P] for x in embedded], rows, freqs, cache)
        block = torch.stack([x[-P:] for x in embedded])[rows]
        made = []
        for i in progress_bar(range(steps), desc="Decoding Steps", disable=not show_progress):
            here = position[:, i * P : (i + 1) * P]
            hidden = trunk.decode(block, freqs, cache)
            prediction = theirs.vision_head.sample(
                hidden + here, num_sampling_steps=num_sampling_steps, cfg=guidance_scale
            )
            tokens = torch.sign(prediction)
            made.append(tokens[:num_images])
            block = theirs.embed_vision_mlp(tokens) + here
        return theirs.decode_image(torch.cat(made, dim=1), [height, width], ps=ps)


def pipeline_methods(pipeline: Any) -> Iterator[Replacement]:
    """Methods to replace in the authors' pipeline.

    Raises:
        PatchError: it is not built as the authors'.
    """
    require(
        "pipeline", pipeline, "ae", "decode_image", "embed_vision_mlp", "get_2d_embed",
        "llm_model", "parallel_num", "tokenizer", "vae_patch_size", "vision_head",
    )  # fmt: skip
    require("pipeline.llm_model", pipeline.llm_model, "model")
    trunk = _trunk("pipeline.llm_model.model", pipeline.llm_model.model)
    yield pipeline, "gen_image", PipelineMethods(pipeline, trunk).gen_image
    yield from head_methods("pipeline.vision_head", pipeline.vision_head, text_to_image=True)
    yield from decoder_methods("pipeline.ae", pipeline.ae)


def _trunk(where: str, theirs: Any) -> Qwen3Model:
    """Ours with the layers of a Hugging Face ``Qwen3Model``."""
    require(where, theirs, "embed_tokens", "layers", "norm", "rotary_emb")
    if not len(theirs.layers):
        raise PatchError(f"patch_official: {where}.layers must be one or more, got none")
    with matched(where), torch.device("meta"):
        attention, mlp = theirs.layers[0].self_attn, theirs.layers[0].mlp
        (head_dim,) = attention.q_norm.weight.shape
        vocabulary, hidden = theirs.embed_tokens.weight.shape
        config = Qwen3Config(
            hidden_size=hidden,
            num_hidden_layers=len(theirs.layers),
            num_attention_heads=attention.q_proj.weight.shape[0] // head_dim,
            num_key_value_heads=attention.k_proj.weight.shape[0] // head_dim,
            intermediate_size=mlp.gate_proj.weight.shape[0],
            vocab_size=vocabulary,
            head_dim=head_dim,
            rms_norm_eps=theirs.norm.variance_epsilon,
            attention_bias=attention.q_proj.bias is not None,
        )
        ours = Qwen3Model(config)
    graft(where, ours, theirs, _same_layer)
    probe = torch.linspace(-4, 4, 9, dtype=torch.float32, device="cpu")
    for i, layer in enumerate(theirs.layers):
        require_value(
            f"{where}.layers.{i}.self_attn", layer.self_attn, attention_dropout=0,
            scaling=head_dim**-0.5, sliding_window=None,
        )  # fmt: skip
        require(f"{where}.layers.{i}.mlp", layer.mlp, "act_fn")
        if not torch.equal(layer.mlp.act_fn(probe), F.silu(probe)):
            raise PatchError(
                f"patch_official: {where}.layers.{i}.mlp.act_fn must be SiLU, got "
                f"{layer.mlp.act_fn}"
            )
    require(f"{where}.rotary_emb", theirs.rotary_emb, "inv_freq")
    require_value(
        f"{where}.rotary_emb", theirs.rotary_emb, attention_scaling=1, rope_type="default"
    )
    devices = sorted({str(parameter.device) for parameter in theirs.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise PatchError(
            f"patch_official: {where} must have all weights on one device, got {', '.join(devices)}"
        )
    return ours


def _same_layer(where: str, expected: nn.Module, found: Any) -> None:
    """``same_layer`` for the classes that Hugging Face has of its own."""
    if isinstance(expected, nn.RMSNorm):
        require_value(where, found, variance_epsilon=expected.eps)
    elif not isinstance(expected, nn.Embedding) or not isinstance(found, nn.Embedding):
        same_layer(where, expected, found)  # the padding token of an embedding does not matter
