"""The parts of the page that show pictures and messages, as HTML.

Pictures are data URLs: what is drawn now is on the page alone, not in a file of the server.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from bitdance.integrations.demo.bit_map import bit_map, npy_file
from bitdance.integrations.demo.models import DemoModel, Picture, Settings
from bitdance.integrations.demo.reconstruction import Rebuilt

__all__ = [
    "CSS",
    "empty_grid",
    "error",
    "note",
    "picture_grid",
    "progress",
    "show_picture",
    "show_rebuilt",
]

_LARGE = 256 * 256  # pixels from which a preview is a JPEG, whose encoding takes less time
_CRISP = 256  # images of fewer pixels a side are enlarged without smoothing
_BYTES = "application/octet-stream"
_BITS = "its bits: white is 1, black is 0"

CSS = """
.bd-grid { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 8px;
  max-width: 640px; margin: 0 auto; }
.bd-grid > *, .bd-cell { aspect-ratio: var(--ratio); width: 100%; border-radius: 4px; }
.bd-cell { background: repeating-linear-gradient(45deg, #8882 0 8px, #8881 8px 16px); }
.bd-crisp { image-rendering: pixelated; }
.bd-line { display: flex; gap: 12px; align-items: center; min-height: 28px; }
.bd-bar { flex: 1; height: 8px; border-radius: 4px; background: var(--border-color-primary); }
.bd-bar div { height: 100%; border-radius: 4px; background: var(--color-accent); }
.bd-error { padding: 8px 12px; border-left: 4px solid #c62828; background: #c6282818;
  border-radius: 4px; overflow-wrap: anywhere; }
.bd-parts { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.bd-parts figure { flex: 1 1 180px; max-width: 300px; margin: 0; }
.bd-parts figure img { width: 100%; object-fit: fill; border-radius: 4px; margin: 0; }
.bd-parts figcaption { padding-top: 4px; font-size: var(--text-sm);
  color: var(--body-text-color-subdued); }
.bd-about { flex: 2 1 320px; }
.bd-facts { display: grid; grid-template-columns: max-content 1fr; margin: 0 0 12px; }
.bd-facts :is(dt, dd) { margin: 0; padding: 4px 16px 4px 0; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--border-color-primary); }
.bd-facts dt { font-weight: 600; }
.bd-links { display: flex; flex-wrap: wrap; gap: 16px; }
.bd-history img { image-rendering: pixelated; }
.bd-history .grid-wrap { min-height: 0; }
"""


def empty_grid(count: int, size: tuple[int, int]) -> str:
    """A grid of `count` images of `size` (height, width) that are not begun."""
    return _grid(['<div class="bd-cell"></div>'] * count, size)


def picture_grid(images: Sequence[Image.Image], settings: Settings, *, finished: bool) -> str:
    """A grid of the images of a run; those that are not finished are encoded quickly."""
    cells = []
    for number, image in enumerate(images):
        text = f"{settings.subject}, image {number + 1}"
        text += "" if finished else ", not finished"
        cells.append(_image(image, text, quick=not finished))
    return _grid(cells, settings.size)


def progress(step: int, ar_steps: int) -> str:
    """How many of the patches are drawn."""
    return _line(
        f'<div class="bd-bar"><div style="width: {step / ar_steps:.1%}"></div></div>'
        f"<span>patch {step} of {ar_steps}</span>"
    )


def note(text: str) -> str:
    """A message."""
    return _line(f"<span>{escape(text)}</span>")


def error(text: str) -> str:
    """A message that something cannot be done."""
    return f'<div class="bd-error" role="alert">{escape(text)}</div>'


def show_picture(model: DemoModel, picture: Picture) -> str:
    """A picture, its bits, what it was drawn from, and both as files."""
    settings, bits = picture.settings, model.bits(picture)
    h, w, channels = bits.shape
    height, width = settings.size
    facts = {
        "class" if model.subjects else "prompt": settings.subject,
        "negative prompt": settings.negative_prompt,
        "seed": f"{settings.seed}, sample id {picture.sample_id}",
        "guidance": f"{settings.guidance_scale:g}",
        "steps": f"{settings.num_inference_steps} per patch",
        "size": f"{width} x {height} pixels",
        "bits": f"{h} x {w} codes of {channels} bits = {picture.packed.size:,} bytes, "
        f"{bits.mean():.1%} of the bits are 1",
    }
    name = f"{model.name}-{settings.seed}-{picture.sample_id}"
    links = [
        _download(_png(picture.image), "image/png", f"{name}.png", "picture (.png)"),
        # With the axis of images, as `bitdance generate --bits` writes it and `decode` takes it.
        _download(npy_file(picture.packed[None]), _BYTES, f"{name}.npy", "packed bits (.npy)"),
    ]
    shown = [(picture.image, "the picture"), (bit_map(bits), _BITS)]
    return _parts(shown, settings.size, facts, links)


def show_rebuilt(model: DemoModel, name: str, rebuilt: Rebuilt) -> str:
    """A visitor's picture, its reconstruction and its bits."""
    h, w, channels = rebuilt.bits.shape
    pixels = rebuilt.original.width * rebuilt.original.height
    share = rebuilt.packed.size / (3 * pixels)
    quality = "no pixel differs" if math.isinf(rebuilt.psnr_db) else f"{rebuilt.psnr_db:.2f} dB"
    height, width = model.size
    facts = {
        "picture": f"{name}, {rebuilt.original.width} x {rebuilt.original.height} pixels",
        "PSNR": quality,
        "bits": f"{h} x {w} codes of {channels} bits = {rebuilt.packed.size:,} bytes, "
        f"{share:.2%} of the {3 * pixels:,} bytes of the pixels",
        "ones": f"{rebuilt.bits.mean():.1%} of the bits are 1",
        "kept": f"{rebuilt.kept:.1%} of the bits are the same when the reconstruction is encoded",
        "model": f"{model.name}, which is made for {width} x {height} pixels",
    }
    shown = [
        (rebuilt.original, "the picture"),
        (rebuilt.image, "its reconstruction"),
        (bit_map(rebuilt.bits), _BITS),
    ]
    links = [
        _download(_png(rebuilt.image), "image/png", "reconstruction.png", "reconstruction (.png)"),
        _download(npy_file(rebuilt.packed[None]), _BYTES, "bits.npy", "packed bits (.npy)"),
    ]
    return _parts(shown, (rebuilt.image.height, rebuilt.image.width), facts, links)


def _grid(cells: Sequence[str], size: tuple[int, int]) -> str:
    columns = math.ceil(math.sqrt(len(cells)))
    style = f"--columns: {columns}; --ratio: {size[1]} / {size[0]}"
    return f'<div class="bd-grid" style="{style}">{"".join(cells)}</div>'


def _line(content: str) -> str:
    return f'<div class="bd-line" role="status">{content}</div>'


def _parts(
    images: Sequence[tuple[Image.Image, str]],
    size: tuple[int, int],
    facts: Mapping[str, str],
    links: Sequence[str],
) -> str:
    """Images, all shown with the proportions of `size` (height, width), beside facts and links."""
    style = f"aspect-ratio: {size[1]} / {size[0]}"
    figures = (
        f"<figure>{_image(image, text, style=style)}"
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for image, text in images
    )
    terms = (
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
    )
    about = f'<dl class="bd-facts">{"".join(terms)}</dl>'
    about += f'<div class="bd-links">{"".join(links)}</div>'
    return f'<div class="bd-parts">{"".join(figures)}<div class="bd-about">{about}</div></div>'


def _download(content: bytes, kind: str, name: str, text: str) -> str:
    return f'<a download="{escape(name)}" href="{_url(content, kind)}">{escape(text)}</a>'


def _image(image: Image.Image, text: str, *, quick: bool = False, style: str = "") -> str:
    crisp = ' class="bd-crisp"' if max(image.size) < _CRISP or image.mode == "L" else ""
    if quick and image.width * image.height > _LARGE:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        source = _url(file.getvalue(), "image/jpeg")
    else:
        source = _url(_png(image), "image/png")
    return f'<img{crisp} style="{style}" alt="{escape(text)}" src="{source}">'


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
