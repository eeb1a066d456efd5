"""Model configurations: frozen dataclasses that check themselves, and the published presets.

Field names are those of the official configuration files, so a released ``ae_config.json`` reads as
it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = [
    "AUTOENCODER_PRESETS",
    "HEAD_PRESETS",
    "PRESETS",
    "AutoencoderConfig",
    "HeadConfig",
    "ModelConfig",
]

NORM_GROUPS = 32
"""Groups of every GroupNorm; each level's width must be a multiple of it."""

Architecture = Literal["conv", "conv_attention"]


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _error(TypeError, name, "an integer", value)
    if value < least:
        raise _error(ValueError, name, f"at least {least}", value)


def _error(kind: type[Exception], name: str, expected: str, got: object) -> Exception:
    return kind(f"AutoencoderConfig: {name} must be {expected}, got {got!r}")


@dataclass(frozen=True)
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
        architecture: "conv" is BitDance's tokenizer. "conv_attention" is UniWeTok: transformer
            blocks instead of the encoder's middle and before the decoder's, a strided convolution
            that also changes the width, and an encoder bounded to (-1, 1).
        attn_blocks: transformer blocks a side ("conv_attention" only).
        n_heads: attention heads of these blocks ("conv_attention" only).

    Raises:
        TypeError: a field has a value of the wrong type.
        ValueError: a field is out of range, or two fields do not fit each other.
    """

    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 4
    z_channels: int = 32
    in_channels: int = 3
    out_ch: int = 3
    num_codebooks: int = 4
    gan_decoder: bool = False
    architecture: Architecture = "conv"
    attn_blocks: int = 2
    n_heads: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.ch_mult, list):  # what JSON has
            object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        if not isinstance(self.ch_mult, tuple) or not self.ch_mult:
            raise _error(TypeError, "ch_mult", "a non-empty sequence of integers", self.ch_mult)
        counts = {
            name: getattr(self, name)
            for name in (
                "ch",
                "num_res_blocks",
                "z_channels",
                "in_channels",
                "out_ch",
                "num_codebooks",
            )
        }
        counts |= {f"ch_mult[{i}]": multiple for i, multiple in enumerate(self.ch_mult)}
        for name, value in counts.items():
            _check_integer(name, value, least=1)
        if not isinstance(self.gan_decoder, bool):
            raise _error(TypeError, "gan_decoder", "a bool", self.gan_decoder)
        if self.architecture not in get_args(Architecture):
            known = " or ".join(repr(name) for name in get_args(Architecture))
            raise _error(ValueError, "architecture", known, self.architecture)
        for name, width in {
            "ch": self.ch,
            **{f"ch * {m}": self.ch * m for m in self.ch_mult},
        }.items():
            if width % NORM_GROUPS != 0:
                raise _error(
                    ValueError, name, f"a multiple of the {NORM_GROUPS} norm groups", width
                )
        if self.z_channels % self.num_codebooks != 0:
            expected = f"a divisor of z_channels = {self.z_channels}"
            raise _error(ValueError, "num_codebooks", expected, self.num_codebooks)
        if self.architecture == "conv_attention":
            self._check_attention()

    def _check_attention(self) -> None:
        _check_integer("attn_blocks", self.attn_blocks, least=0)
        _check_integer("n_heads", self.n_heads, least=1)
        if self.ch_mult[0] != 1:
            # Its residual blocks keep the width and the first of them sits right after conv_in.
            raise _error(ValueError, "ch_mult[0]", "1 for 'conv_attention'", self.ch_mult[0])
        width = self.ch * self.ch_mult[-1]
        if width % (4 * self.n_heads) != 0:
            # Two axes of rotated pairs share a head.
            expected = f"such that 4 * n_heads divides the middle's width {width}"
            raise _error(ValueError, "n_heads", expected, self.n_heads)

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
            TypeError: a value has the wrong type.
            ValueError: an unknown key, a value out of range, or ``double_z`` true.
        """
        flat = dict(values)
        nested = flat.pop("ddconfig", {})
        if not isinstance(nested, Mapping):
            raise _error(TypeError, "ddconfig", "a mapping", nested)
        if nested and {"attn_blocks", "n_heads"} & set(nested):
            flat.setdefault("architecture", "conv_attention")
        flat = {**nested, **flat}
        if flat.get("architecture") == "conv_attention":
            flat.setdefault("gan_decoder", True)
        if flat.pop("double_z", False):
            raise _error(ValueError, "double_z", "false: a binary code has no variance", True)
        for name in ("resolution", "checkpoint"):
            flat.pop(name, None)
        flat = {name: value for name, value in flat.items() if not name.startswith("_")}
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(flat) - set(known))
        if unknown:
            raise _error(ValueError, "keys", f"among {', '.join(known)}", ", ".join(unknown))
        return cls(**flat)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "ch_mult": list(self.ch_mult)}


AUTOENCODER_PRESETS = {
    # ImageNet models and the 14B text-to-image models.
    "d16c32": AutoencoderConfig(),
    # The group counts of the d32 tokenizers are not published; 8-bit groups as in d16c32.
    "d32c128": AutoencoderConfig(
        ch=128, ch_mult=(1, 1, 2, 2, 4, 8), z_channels=128, num_codebooks=16, gan_decoder=True
    ),
    # Its widths are not published either: those of d32c128.
    "d32c256": AutoencoderConfig(
        ch=128, ch_mult=(1, 1, 2, 2, 4, 8), z_channels=256, num_codebooks=32, gan_decoder=True
    ),
}
"""Published tokenizers by name: d<pixels a side>c<bits>."""


HeadArchitecture = Literal["mlp", "transformer", "t2i"]
TimeSchedule = Literal["logit_normal", "uniform"]


def _require(config: object, name: str, fulfilled: bool, expected: str) -> None:
    if not fulfilled:
        got = getattr(config, name)
        raise ValueError(f"{type(config).__name__}: {name} must be {expected}, got {got!r}")


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(config, name, whole and value >= 1, "an integer of at least 1")


def _check_choice(config: object, name: str, choices: Any) -> None:
    known = get_args(choices)
    _require(config, name, getattr(config, name) in known, f"one of {', '.join(known)}")


@dataclass(frozen=True)
class HeadConfig:
    """Shape of the binary diffusion head, and the times it is trained at.

    Args:
        ch_target: bits of a token.
        ch_cond: width of the conditioning (the transformer's).
        ch_latent: width of the head.
        depth_latent: blocks.
        depth_adanln: adaLN projections, each shared by consecutive blocks: block i of n uses number
            ``i * depth_adanln // n``, which is the official sharing wherever that is defined.
        architecture: "mlp" has one token a step, "transformer" attention among the tokens of a
            patch; "t2i" is the text-to-image form of it, with heads of 128 instead of 64 channels
            and an output in (-1, 1).
        use_swiglu: of "t2i": SwiGLU, or the plain SiLU network of its first version.
        time_shift: s of t' = (1/s) / (1/s + 1/t - 1); more than 1 moves times toward noise.
        time_schedule: training times: sigmoid of a normal, or uniform.
        P_mean: mean of that normal.
        P_std: its standard deviation.

    Raises:
        ValueError: a field is out of range, or there are more adaLN projections than blocks.
    """

    ch_target: int
    ch_cond: int
    ch_latent: int
    depth_latent: int
    depth_adanln: int
    architecture: HeadArchitecture = "mlp"
    use_swiglu: bool = True
    time_shift: float = 1.0
    time_schedule: TimeSchedule = "logit_normal"
    P_mean: float = -0.8
    P_std: float = 0.8

    def __post_init__(self) -> None:
        _at_least_one(self, "ch_target", "ch_cond", "ch_latent", "depth_latent", "depth_adanln")
        _require(
            self,
            "depth_adanln",
            self.depth_adanln <= self.depth_latent,
            f"at most depth_latent = {self.depth_latent}",
        )
        _check_choice(self, "architecture", HeadArchitecture)
        _check_choice(self, "time_schedule", TimeSchedule)
        _require(self, "time_shift", self.time_shift > 0, "greater than 0")
        _require(self, "P_std", self.P_std >= 0, "0 or more")
        _require(
            self,
            "ch_latent",
            self.architecture == "mlp" or self.ch_latent % self.num_heads == 0,
            f"a multiple of its {self.num_heads} attention heads",
        )

    @property
    def num_heads(self) -> int:
        """Attention heads: of 64 channels ("t2i": 128), at least one however narrow the head is."""
        return max(1, self.ch_latent // (128 if self.architecture == "t2i" else 64))


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a class-conditional BitDance model; field names are the official ones.

    Args:
        dim: width of the transformer.
        n_layer: its blocks.
        n_head: its attention heads.
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
        perturb_rate: of the bit flips in training; a bit flips with half of it.
        class_dropout_prob: how often training hides the class.
        cfg_scale: guidance scale that the authors recommend for sampling.
        autoencoder: the tokenizer.

    Raises:
        ValueError: a field is out of range, or two do not fit each other.
    """

    dim: int
    n_layer: int
    n_head: int
    diff_layers: int
    diff_dim: int
    diff_adanln_layers: int
    parallel_num: int = 1
    parallel_mode: Literal["patch", "standard"] = "patch"
    patch_size: int = 1
    latent_dim: int = 32
    down_size: int = 16
    resolution: int = 256
    num_classes: int = 1000
    cls_token_num: int = 64
    time_shift: float = 1.0
    time_schedule: TimeSchedule = "logit_normal"
    P_mean: float = -0.8
    P_std: float = 0.8
    diff_batch_mul: int = 4
    perturb_rate: float = 0.1
    class_dropout_prob: float = 0.1
    cfg_scale: float = 1.0
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    def __post_init__(self) -> None:
        whole = (
            "dim",
            "n_layer",
            "n_head",
            "parallel_num",
            "patch_size",
            "latent_dim",
            "down_size",
        )
        _at_least_one(self, *whole, "resolution", "num_classes", "cls_token_num", "diff_batch_mul")
        _check_choice(self, "parallel_mode", Literal["patch", "standard"])
        _require(self, "dim", self.dim % (4 * self.n_head) == 0, f"a multiple of 4 * {self.n_head}")
        side = self.down_size * self.patch_size
        _require(self, "resolution", self.resolution % side == 0, f"a multiple of {side}")
        groups = f"such that {self.tokens} tokens make whole groups"
        _require(self, "parallel_num", self.tokens % self.parallel_num == 0, groups)
        if self.parallel_mode == "patch":
            root = math.isqrt(self.parallel_num)
            square = root * root == self.parallel_num and self.grid % root == 0
            expected = f"a square whose root divides the grid of {self.grid} (or use 'standard')"
            _require(self, "parallel_num", square, expected)
        for name in ("perturb_rate", "class_dropout_prob"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        _require(
            self,
            "latent_dim",
            self.latent_dim == self.autoencoder.z_channels,
            f"the autoencoder's z_channels = {self.autoencoder.z_channels}",
        )
        self.head  # noqa: B018  (raises if the head's fields are wrong)

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
            ValueError: an unknown or missing key, or a value out of range.
        """
        values = dict(values)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"ModelConfig: unknown keys {', '.join(unknown)}")
        if "autoencoder" in values:
            values["autoencoder"] = AutoencoderConfig.from_dict(values["autoencoder"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"ModelConfig: {error}") from error

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
