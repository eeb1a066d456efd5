"""Model configurations: frozen dataclasses that check themselves, and the published presets.

Field names are those of the official configuration files, so a released ``ae_config.json`` reads as
it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from bitdance.io.settings import (
    Bool,
    Depth,
    Fraction,
    Integer,
    ListOrTuple,
    NonNegative,
    Number,
    Positive,
    Size,
    invalid,
    invalid_value,
    parse,
    settings,
)
from bitdance.io.validation import brief

__all__ = [
    "AUTOENCODER_PRESETS",
    "HEAD_PRESETS",
    "PRESETS",
    "AutoencoderConfig",
    "HeadConfig",
    "ModelConfig",
    "ModelShape",
]

NORM_GROUPS = 32
"""Groups of every GroupNorm; each level's width must be a multiple of it."""

Architecture = Literal["conv", "conv_attention"]


@settings
class AutoencoderConfig:
    """Shape of the binary autoencoder.

    The image is halved once between two levels, so one code covers ``downsampling`` pixels a side.

    Args:
        ch: width of the first level.
        ch_mult: width of each level as a multiple of `ch`, finest level first.
        num_res_blocks: residual blocks a level, and in the middle.
        z_channels: bits of one code.
        in_channels: channels of the image given to the encoder.
        out_ch: channels of the image the decoder returns.
        num_codebooks: groups of ``z_channels / num_codebooks`` bits over which the entropy loss is
            taken. Checkpoints do not depend on it.
        gan_decoder: the decoder gets Gaussian noise of the code's shape as further input channels.
        architecture: "conv" is BitDance's autoencoder. "conv_attention" is UniWeTok: transformer
            blocks instead of the encoder's middle and before the decoder's, a strided convolution
            that also changes the width, and an encoder bounded to (-1, 1).
        attn_blocks: transformer blocks a side; of "conv_attention".
        n_heads: attention heads of these blocks, for "conv_attention".

    Raises:
        ValueError: a field has the wrong type or is out of range, or two do not fit each other.
    """

    ch: Size = 256
    ch_mult: Annotated[tuple[Size, ...], ListOrTuple, Field(min_length=1, max_length=12)] = (
        1, 1, 2, 2, 4,
    )  # fmt: skip
    num_res_blocks: Depth = 4
    z_channels: Size = 32
    in_channels: Size = 3
    out_ch: Size = 3
    num_codebooks: Size = 4
    gan_decoder: Bool = False
    architecture: Architecture = "conv"
    attn_blocks: Annotated[Integer, Field(ge=0, le=2**12)] = 2
    n_heads: Size = 16

    def __post_init__(self) -> None:
        if self.ch % NORM_GROUPS != 0:
            raise invalid(self, "ch", f"a multiple of the {NORM_GROUPS} norm groups")
        if self.ch * max(self.ch_mult) > 2**20:
            raise invalid(self, "ch_mult", f"at most {2**20 // self.ch} for ch = {self.ch}")
        if self.z_channels % self.num_codebooks != 0:
            raise invalid(self, "num_codebooks", f"a divisor of z_channels = {self.z_channels}")
        if self.architecture == "conv_attention":
            self._check_attention()
            return
        for name in ("attn_blocks", "n_heads"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                expected = f"left out ({default}) with architecture 'conv', which has no attention"
                raise invalid(self, name, expected)

    def _check_attention(self) -> None:
        if self.ch_mult[0] != 1:
            # Its residual blocks keep the width and the first of them sits right after conv_in.
            raise invalid(self, "ch_mult", "a list that begins with 1 for 'conv_attention'")
        width = self.ch * self.ch_mult[-1]
        if width % (4 * self.n_heads) != 0:
            # Two axes of rotated pairs share a head.
            expected = f"such that 4 * n_heads divides the middle's width {width}"
            raise invalid(self, "n_heads", expected)

    @property
    def downsampling(self) -> int:
        """Pixels a side that one code covers."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def code_bits(self) -> int:
        """Bits of a group, whose codebook has ``2 ** code_bits`` entries."""
        return self.z_channels // self.num_codebooks

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Build a configuration from what `to_dict` gives or from an official file's content.

        Official files nest the shape under ``ddconfig``. One whose shape has ``attn_blocks`` or
        ``n_heads`` is UniWeTok's: architecture "conv_attention", and ``gan_decoder`` true unless it
        says otherwise. Keys without a meaning here are passed over when they cannot change the
        model: ``resolution``, ``checkpoint``, ``double_z`` when false, and names that begin with an
        underscore.

        Args:
            values: the configuration as read from JSON.

        Raises:
            ValueError: an unknown key, a value of the wrong type or out of range, or ``double_z``
                true.
        """
        return parse(cls, values)

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        if isinstance(values, ArgsKwargs) or not isinstance(values, Mapping):
            return values
        flat = dict(values)
        nested = flat.pop("ddconfig", {})
        if not isinstance(nested, Mapping):
            raise invalid_value("ddconfig", "a section of keys and values", nested)
        if {"attn_blocks", "n_heads"} & set(nested):
            flat.setdefault("architecture", "conv_attention")
        for name in set(nested) & set(flat):
            if nested[name] != flat[name]:
                raise invalid_value(name, f"{brief(flat[name])} in ddconfig too", nested[name])
        flat |= nested
        if flat.get("architecture") == "conv_attention":
            flat.setdefault("gan_decoder", True)
        double = flat.pop("double_z", False)
        if double is not False:
            raise invalid_value("double_z", "false, since a binary code has no variance", double)
        for name in ("resolution", "checkpoint"):
            flat.pop(name, None)
        return {name: value for name, value in flat.items() if not str(name).startswith("_")}

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them; `from_dict` is the inverse."""
        values = {**dataclasses.asdict(self), "ch_mult": list(self.ch_mult)}
        if self.architecture == "conv":
            del values["attn_blocks"], values["n_heads"]
        return values


AUTOENCODER_PRESETS = {
    # ImageNet models and the 14B text-to-image models.
    "d16c32": AutoencoderConfig(),
    # The group counts of the d32 autoencoders are not published; 8-bit groups as in d16c32.
    "d32c128": AutoencoderConfig(
        ch=128, ch_mult=(1, 1, 2, 2, 4, 8), z_channels=128, num_codebooks=16, gan_decoder=True
    ),
    # Its widths are not published either: those of d32c128.
    "d32c256": AutoencoderConfig(
        ch=128, ch_mult=(1, 1, 2, 2, 4, 8), z_channels=256, num_codebooks=32, gan_decoder=True
    ),
    # Nor are these: d32c128 with the attention that the authors' code adds by default.
    "UniWeTok": AutoencoderConfig(
        ch=128, ch_mult=(1, 1, 2, 2, 4, 8), z_channels=128, num_codebooks=16, gan_decoder=True,
        architecture="conv_attention",
    ),
}  # fmt: skip
"""Published autoencoders by name: d<pixels a side>c<bits>, and UniWeTok."""


HeadArchitecture = Literal["mlp", "transformer", "t2i"]
TimeSchedule = Literal["logit_normal", "uniform"]


@settings
class HeadConfig:
    """Shape of the binary diffusion head, and the times it is trained at.

    Args:
        ch_target: bits of a token.
        ch_cond: width of the conditioning (the transformer's).
        ch_latent: width of the head.
        depth_latent: blocks.
        depth_adanln: adaLN projections, each shared by consecutive blocks; see `adaln_of`. Those
            beyond one a block are unused, as in the authors' code.
        architecture: "mlp" has one token a step, "transformer" attention among the tokens of a
            patch; "t2i" is the text-to-image form of it, with heads of 128 instead of 64 channels
            and an output in (-1, 1).
        use_swiglu: for "t2i", SwiGLU rather than the SiLU network of its first version.
        time_shift: s of t' = (1/s) / (1/s + 1/t - 1); more than 1 moves times toward noise.
        time_schedule: training times: sigmoid of a normal, or uniform.
        P_mean: mean of that normal.
        P_std: its standard deviation.

    Raises:
        ValueError: a field has the wrong type or is out of range.
    """

    ch_target: Size
    ch_cond: Size
    ch_latent: Size
    depth_latent: Depth
    depth_adanln: Depth
    architecture: HeadArchitecture = "mlp"
    use_swiglu: Bool = True
    time_shift: Positive = 1.0
    time_schedule: TimeSchedule = "logit_normal"
    P_mean: Number = -0.8
    P_std: NonNegative = 0.8

    def __post_init__(self) -> None:
        if self.architecture != "t2i" and not self.use_swiglu:
            raise invalid(self, "use_swiglu", f"true with architecture {self.architecture!r}")
        if self.architecture != "mlp" and self.ch_latent % self.num_heads != 0:
            raise invalid(self, "ch_latent", f"a multiple of its {self.num_heads} attention heads")

    @property
    def num_heads(self) -> int:
        """Attention heads: of 64 channels ("t2i": 128), at least one however narrow the head is."""
        return max(1, self.ch_latent // (128 if self.architecture == "t2i" else 64))

    def adaln_of(self, block: int) -> int:
        """Number of the adaLN projection of a block: official wherever that is defined."""
        return block * min(self.depth_adanln, self.depth_latent) // self.depth_latent


@settings
class ModelShape:
    """Fields of a class-conditional model that do not follow from its autoencoder and its images.

    Field names are the official ones; see ``ModelConfig``.
    """

    dim: Size
    n_layer: Depth
    n_head: Size
    diff_layers: Depth
    diff_dim: Size
    diff_adanln_layers: Depth
    parallel_num: Size = 1
    parallel_mode: Literal["patch", "standard"] = "patch"
    patch_size: Size = 1
    num_classes: Size = 1000
    cls_token_num: Size = 64
    time_shift: Positive = 1.0
    time_schedule: TimeSchedule = "logit_normal"
    P_mean: Number = -0.8
    P_std: NonNegative = 0.8
    diff_batch_mul: Size = 4
    perturb_rate: Fraction = 0.1
    class_dropout_prob: Fraction = 0.1
    cfg_scale: Number = 1.0

    def __post_init__(self) -> None:
        if self.dim % (4 * self.n_head) != 0:
            raise invalid(self, "dim", f"a multiple of 4 * {self.n_head}")
        heads = max(1, self.diff_dim // 64)
        if self.parallel_num > 1 and self.diff_dim % heads != 0:
            raise invalid(self, "diff_dim", f"a multiple of the head's {heads} attention heads")


@settings
class ModelConfig(ModelShape):
    """Shape of a class-conditional BitDance model; field names are the official ones.

    Args:
        dim: width of the transformer.
        n_layer: blocks of the transformer.
        n_head: attention heads of the transformer.
        diff_layers: blocks of the head.
        diff_dim: width of the head.
        diff_adanln_layers: adaLN projections of the head.
        parallel_num: P, tokens per step.
        parallel_mode: "patch" groups sqrt(P) x sqrt(P) squares of tokens, "standard" P tokens in
            raster order.
        patch_size: cells of the latent map a token covers, a side.
        latent_dim: bits of a cell.
        down_size: pixels a cell covers, a side.
        resolution: pixels a side.
        num_classes: classes; one more embedding stands for none.
        cls_token_num: tokens of the class prefix.
        time_shift: as in ``HeadConfig``, so are `time_schedule`, `P_mean` and `P_std`.
        time_schedule: see there.
        P_mean: see there.
        P_std: see there.
        diff_batch_mul: noise levels drawn per token in training.
        perturb_rate: rate of bit flips in training; a bit flips with half of it.
        class_dropout_prob: probability that training hides the class.
        cfg_scale: guidance scale that the authors recommend for sampling.
        autoencoder: shape of the autoencoder.

    Raises:
        ValueError: a field has the wrong type or is out of range, or two do not fit each other.
    """

    latent_dim: Size = 32
    down_size: Size = 16
    resolution: Annotated[Size, Field(le=2**16)] = 256
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        side = self.down_size * self.patch_size
        if self.resolution % side != 0:
            raise invalid(self, "resolution", f"a multiple of {side}")
        if self.tokens % self.parallel_num != 0:
            raise invalid(self, "parallel_num", f"such that {self.tokens} tokens make whole groups")
        root = math.isqrt(self.parallel_num)
        square = root * root == self.parallel_num and self.grid % root == 0
        if self.parallel_mode == "patch" and not square:
            expected = f"a square whose root divides the grid of {self.grid} (or use 'standard')"
            raise invalid(self, "parallel_num", expected)
        if self.latent_dim != self.autoencoder.z_channels:
            bits = self.autoencoder.z_channels
            raise invalid(self, "latent_dim", f"the autoencoder's z_channels = {bits}")
        if self.token_bits > 2**20:
            raise invalid(self, "patch_size", f"such that a token has at most {2**20} bits")

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.resolution // (self.down_size * self.patch_size)

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid**2

    @property
    def token_bits(self) -> int:
        """Bits of a token."""
        return self.latent_dim * self.patch_size**2

    @property
    def ar_steps(self) -> int:
        """Steps of the transformer per image."""
        return self.tokens // self.parallel_num

    @property
    def prefix(self) -> int:
        """Positions before the first image token: class tokens and P - 1 query tokens."""
        return self.cls_token_num + self.parallel_num - 1

    @property
    def head(self) -> HeadConfig:
        """The diffusion head."""
        return HeadConfig(
            ch_target=self.token_bits,
            ch_cond=self.dim,
            ch_latent=self.diff_dim,
            depth_latent=self.diff_layers,
            depth_adanln=self.diff_adanln_layers,
            architecture="mlp" if self.parallel_num == 1 else "transformer",
            time_shift=self.time_shift,
            time_schedule=self.time_schedule,
            P_mean=self.P_mean,
            P_std=self.P_std,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown or missing key, or a value of the wrong type or out of range.
        """
        return parse(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {**dataclasses.asdict(self), "autoencoder": self.autoencoder.to_dict()}


_BASE = ModelConfig(
    dim=768, n_layer=24, n_head=12, diff_layers=6, diff_dim=768, diff_adanln_layers=2
)  # fmt: skip

PRESETS = {
    "B-1x": dataclasses.replace(_BASE, cfg_scale=3.2),
    "B-4x": dataclasses.replace(_BASE, parallel_num=4, cfg_scale=3.9),
    "B-16x": dataclasses.replace(_BASE, parallel_num=16, cfg_scale=6.1),
    "L-1x": ModelConfig(
        dim=1024, n_layer=32, n_head=16, diff_layers=8, diff_dim=1024, diff_adanln_layers=2,
        perturb_rate=0.05, cfg_scale=4.0,
    ),
    "H-1x": ModelConfig(
        dim=1280, n_layer=40, n_head=20, diff_layers=12, diff_dim=1280, diff_adanln_layers=3,
        perturb_rate=0.05, cfg_scale=4.55,
    ),
}  # fmt: skip
"""Published ImageNet models: size and tokens per step."""

HEAD_PRESETS = {
    "t2i-14b": HeadConfig(
        ch_target=32, ch_cond=5120, ch_latent=5120, depth_latent=6, depth_adanln=2,
        architecture="t2i",
    ),
}  # fmt: skip
"""Published text-to-image heads; the weights do not depend on the tokens per step."""
