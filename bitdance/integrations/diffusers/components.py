"""Parts of the models as diffusers' models, which save, load, cast and move themselves.

A component has the parameters of a network of this library under their names there, and its
configuration. It shares them with the network, ``native``, which pipelines use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from typing_extensions import Self

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig, HeadConfig, ModelConfig
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.loading.meta_device import build_on_meta
from bitdance.models.projectors import TextToImageProjection
from bitdance.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

__all__ = [
    "BitDanceAutoencoder",
    "BitDanceDiffusionHead",
    "BitDanceProjector",
    "BitDanceTextEncoder",
    "BitDanceTransformer",
    "Component",
]


# Where a component is made: diffusers moves parameters to the meta device itself when it loads.
_DEVICE: ContextVar[str] = ContextVar("_DEVICE", default="cpu")


class Component(ModelMixin, ConfigMixin):
    """A network of this library as a model of diffusers."""

    _left_out: tuple[str, ...] = ()  # children of the network that are components of their own

    @classmethod
    def of(cls, native: nn.Module, config: Mapping[str, Any]) -> Self:
        """The component of a network that exists, with its parameters.

        Args:
            native: the network.
            config: arguments of the component.
        """
        before = _DEVICE.set("meta")
        try:
            component = build_on_meta(lambda: cls(**config), cls.__name__)
        finally:
            _DEVICE.reset(before)
        component._share(native)
        return component

    def _share(self, native: nn.Module) -> None:
        # Not a child: its parameters would have two names.
        self.__dict__["_native"] = native
        for name, child in native.named_children():
            if name not in self._left_out:
                self.add_module(name, child)
        for name, parameter in native.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    @property
    def native(self) -> Any:
        """The network, with the parameters and layers that the component has now."""
        native: nn.Module = self.__dict__["_native"]
        native._modules.update(self._modules)
        native._parameters.update(self._parameters)
        return native

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's forward, with its arguments and results."""
        return self.native(*args, **kwargs)


class BitDanceTextEncoder(Component):
    """The language model; arguments are those of transformers' ``Qwen3Config``."""

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 32,
        intermediate_size: int = 22016,
        vocab_size: int = 151936,
        head_dim: int = 128,
        max_position_embeddings: int = 32768,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        attention_bias: bool = False,
        tie_word_embeddings: bool = False,
    ) -> None:
        super().__init__()
        config = Qwen3Config(
            hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
            intermediate_size, vocab_size, head_dim, max_position_embeddings, rope_theta,
            rms_norm_eps, attention_bias, tie_word_embeddings,
        )  # fmt: skip
        self._share(Qwen3ForCausalLM(config, dtype=torch.float32, device=_DEVICE.get()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The trunk's forward; the projection to words is for training."""
        return self.native.model(*args, **kwargs)


class BitDanceDiffusionHead(Component):
    """The diffusion head of a text-to-image model; arguments are those of ``HeadConfig``.

    `parallel_num` is P, the tokens of a step, on which no weight depends.
    """

    @register_to_config
    def __init__(
        self,
        ch_target: int,
        ch_cond: int,
        ch_latent: int,
        depth_latent: int,
        depth_adanln: int,
        use_swiglu: bool = False,
        time_shift: float = 1.0,
        time_schedule: str = "logit_normal",
        P_mean: float = 0.0,
        P_std: float = 1.0,
        parallel_num: int = 4,
    ) -> None:
        super().__init__()
        config = HeadConfig(
            ch_target=ch_target, ch_cond=ch_cond, ch_latent=ch_latent, depth_latent=depth_latent,
            depth_adanln=depth_adanln, use_swiglu=use_swiglu, time_shift=time_shift,
            time_schedule=time_schedule,  # type: ignore[arg-type]
            P_mean=P_mean, P_std=P_std, architecture="t2i",
        )  # fmt: skip
        self._share(DiffusionHead(config, dtype=torch.float32, device=_DEVICE.get()))


class BitDanceProjector(Component):
    """The projector from the bits of a token, `in_dim`, to the language model, `out_dim`."""

    @register_to_config
    def __init__(self, in_dim: int, out_dim: int, hidden_act: str = "gelu_pytorch_tanh") -> None:
        super().__init__()
        if hidden_act != "gelu_pytorch_tanh":
            raise ValueError(
                f"BitDanceProjector: hidden_act must be 'gelu_pytorch_tanh', got {hidden_act!r}"
            )
        self._share(
            TextToImageProjection(in_dim, out_dim, dtype=torch.float32, device=_DEVICE.get())
        )


class BitDanceAutoencoder(Component):
    """The binary autoencoder; arguments are those of ``AutoencoderConfig``."""

    @register_to_config
    def __init__(
        self,
        ch: int = 256,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        z_channels: int = 32,
        in_channels: int = 3,
        out_ch: int = 3,
        num_codebooks: int = 4,
        gan_decoder: bool = False,
        architecture: str = "conv",
        attn_blocks: int = 2,
        n_heads: int = 16,
    ) -> None:
        super().__init__()
        config = AutoencoderConfig(
            ch, tuple(ch_mult), num_res_blocks, z_channels, in_channels, out_ch, num_codebooks,
            gan_decoder, architecture, attn_blocks, n_heads,  # type: ignore[arg-type]
        )  # fmt: skip
        self._share(
            BinaryAutoencoder(config, dtype=torch.float32, device=_DEVICE.get()).requires_grad_(
                False
            )
        )

    def enable_tiling(self, tile_size: int = 512, *, exact: bool = True) -> None:
        """Decode large images in tiles, see ``bitdance.BinaryAutoencoder.enable_tiling``."""
        self.native.enable_tiling(tile_size, exact=exact)

    def disable_tiling(self) -> None:
        """Decode every image whole."""
        self.native.disable_tiling()

    def enable_slicing(self) -> None:
        """Decode the images of a batch one after the other."""
        self.native.enable_slicing()

    def disable_slicing(self) -> None:
        """Decode all images of a batch at a time."""
        self.native.disable_slicing()


class BitDanceTransformer(Component):
    """A class-conditional model without its autoencoder.

    Args:
        model: fields of its ``ModelConfig``, the autoencoder's among them.
    """

    _left_out = ("vae",)

    @register_to_config
    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        config = ModelConfig.from_dict(dict(model))
        self._share(BitDanceModel(config, dtype=torch.float32, device=_DEVICE.get()))
