"""Model configurations: frozen dataclasses that check themselves, and the published presets.

Field names are those of the official configuration files, so a released ``ae_config.json`` reads as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["AUTOENCODER_PRESETS", "AutoencoderConfig"]

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
        num_codebooks: groups of ``z_channels / num_codebooks`` bits over which the entropy loss is taken.
            Checkpoints do not depend on it.
        gan_decoder: the decoder gets Gaussian noise of the code's shape as further input channels.
        architecture: "conv" is BitDance's tokenizer. "conv_attention" is UniWeTok: transformer blocks
            instead of the encoder's middle and before the decoder's, a strided convolution that also
            changes the width, and an encoder bounded to (-1, 1).
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
            for name in ("ch", "num_res_blocks", "z_channels", "in_channels", "out_ch", "num_codebooks")
        }
        counts |= {f"ch_mult[{i}]": multiple for i, multiple in enumerate(self.ch_mult)}
        for name, value in counts.items():
            _check_integer(name, value, least=1)
        if not isinstance(self.gan_decoder, bool):
            raise _error(TypeError, "gan_decoder", "a bool", self.gan_decoder)
        if self.architecture not in get_args(Architecture):
            known = " or ".join(repr(name) for name in get_args(Architecture))
            raise _error(ValueError, "architecture", known, self.architecture)
        for name, width in {"ch": self.ch, **{f"ch * {m}": self.ch * m for m in self.ch_mult}}.items():
            if width % NORM_GROUPS != 0:
                raise _error(ValueError, name, f"a multiple of the {NORM_GROUPS} norm groups", width)
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
        ``n_heads`` is UniWeTok's: architecture "conv_attention", and ``gan_decoder`` true unless it says
        otherwise. Keys without a meaning here are passed over when they cannot change the model:
        ``resolution``, ``checkpoint``, ``double_z`` when false, and names that begin with an underscore.

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
