"""Draws docs/plots/packed_mask.svg, the mask of a packed sequence: ``make docs``.

Two documents, each a prompt and an image, in one sequence. A row is a query, and what it sees is
one bar: the interval that ``packed_document_ranges`` gives for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bitdance_kernels import Ranges, packed_document_ranges

OUT = Path(__file__).parent / "plots" / "packed_mask.svg"
PATCH = 4
# Documents of segments (tokens, mode); an image begins with two causal tokens.
DOCUMENTS = (
    ((6, "causal"), (2 + 3 * PATCH, "parallel")),
    ((4, "causal"), (2 + 4 * PATCH, "parallel")),
)
CELL, LEFT, TOP, RIGHT = 11, 76, 62, 14
COLOURS = {"causal": "#e08a2e", "parallel": "#3b6fb6"}
NAMES = {"causal": "text", "parallel": "image"}
INK, GRID, PAPER, HIDDEN = "#333333", "#ffffff", "#ffffff", "#eef0f3"


def ranges_of(documents: tuple[tuple[tuple[int, str], ...], ...]) -> Ranges:
    """The ranges of the documents one after the other."""
    lengths = [sum(tokens for tokens, _ in document) for document in documents]
    segments = [segment for document in documents for segment in document]
    return packed_document_ranges(lengths, segments, patch_tokens=PATCH)


def draw(documents: tuple[tuple[tuple[int, str], ...], ...]) -> str:
    """The picture as SVG."""
    ranges = ranges_of(documents)
    tokens = len(ranges.start)
    side = tokens * CELL
    width, height = LEFT + side + RIGHT, TOP + side + 34
    shapes = [_rect(LEFT, TOP, side, side, HIDDEN)]
    labels = []
    first = 0
    for tokens_of, mode in (segment for document in documents for segment in document):
        for i in range(first, first + tokens_of):
            start, end = int(ranges.start[i]), int(ranges.end[i])
            x, y = LEFT + start * CELL, TOP + i * CELL
            shapes.append(_rect(x, y, (end - start) * CELL, CELL, COLOURS[mode]))
        middle = (first + tokens_of / 2) * CELL
        length = tokens_of * CELL - 2
        shapes.append(_rect(LEFT + first * CELL + 1, TOP - 9, length, 5, COLOURS[mode]))
        shapes.append(_rect(LEFT - 9, TOP + first * CELL + 1, 5, length, COLOURS[mode]))
        labels.append(_text(LEFT + middle, TOP - 15, NAMES[mode], "middle"))
        labels.append(_text(LEFT - 15, TOP + middle + 4, NAMES[mode], "end"))
        first += tokens_of
    grid = [
        f'<path d="M{LEFT + i * CELL} {TOP}v{side}M{LEFT} {TOP + i * CELL}h{side}"/>'
        for i in range(tokens + 1)
    ]
    boundary = 0
    edges = []
    for document in documents[:-1]:
        boundary += sum(tokens_of for tokens_of, _ in document) * CELL
        edges.append(f'<path d="M{LEFT + boundary} {TOP}v{side}M{LEFT} {TOP + boundary}h{side}"/>')
    labels.append(_text(LEFT + side / 2, 20, "keys", "middle"))
    labels.append(
        f'<text transform="translate(16 {TOP + side / 2:g}) rotate(-90)" '
        'text-anchor="middle">queries</text>'
    )
    caption = f"two packed documents, patches of {PATCH} tokens: what a query sees is one interval"
    labels.append(_text(LEFT + side / 2, TOP + side + 22, caption, "middle"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
            _rect(0, 0, width, height, PAPER),
            *shapes,
            f'<g stroke="{GRID}" stroke-width="1">{"".join(grid)}</g>',
            f'<g stroke="{INK}" stroke-width="1" stroke-dasharray="3 3">{"".join(edges)}</g>',
            *labels,
            "</svg>\n",
        ]
    )


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.write_text(draw(DOCUMENTS))


if __name__ == "__main__":
    main()
