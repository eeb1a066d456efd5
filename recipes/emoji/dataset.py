"""Color emoji of two styles with captions, from three npm packages.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 emojibase-data@17.0.0
    python recipes/emoji/dataset.py --packages . --out runs/emoji/data

The folder gets ``train`` and ``test`` with pictures of 64 x 64 pixels on white, a sub-folder per
category, and ``train.jsonl`` and ``test.jsonl`` with captions, as ``bitdance tokenize --captions``
reads them. The model of prompts would learn codes by heart: ``shifted`` has each training picture
six times, five of them shifted, and ``varied`` fourteen times, in other sizes and places, both with
captions of their own beside them. The test pictures are combinations that the training pictures
lack: a skin tone of a person, all of a gender and style of a role, a style of a thing. See NOTICE
for the licenses.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bitdance.io.files import sha256
from bitdance.io.image_files import decode_image, read_image

PACKAGES = {
    "emoji-datasource-google-16.0.0.tgz":
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter-16.0.0.tgz":
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "emojibase-data-17.0.0.tgz": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}  # fmt: skip
"""The packages and their SHA-256."""

STYLES = {"noto": "google", "twemoji": "twitter"}
TONES = {
    "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark",
    "1F3FF": "dark",
}  # fmt: skip
SIZE, SHIFT = 64, 2  # sides of a picture, and of what copies may lose at an edge
SIDES = 56, 58, 60, 62, 64, 64, 64  # of copies, equally often
Place = tuple[int, int, int]  # side of a copy, and the pixels that it is down and right
JOINER, FEMALE, MALE = "200D", "2640", "2642"
GENDERS = {"1F468": "man", "1F469": "woman", "1F9D1": "person"}
# Code points behind the first person that make a couple or a family rather than a role.
OTHERS = {"1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2", "2764", "1F48B", "1F91D"}


@dataclass
class Emoji:
    """A picture.

    Attributes:
        image: name of its file.
        style: "noto" or "twemoji".
        unified: its code points.
        base: those of the same emoji without skin tone.
        family: those without skin tone and gender.
        gender: "man", "woman", "person" where the family has both, or "none".
        tones: no, one or two skin tones.
        label: name, without skin tone and style.
        tags: keywords.
        category: one of ten.
        held_out: "A", "B" or "C", why it is not trained on, or empty.
    """

    image: str
    style: str
    unified: str
    base: str
    family: str
    gender: str
    tones: tuple[str, ...]
    label: str
    tags: tuple[str, ...]
    category: str
    held_out: str = ""

    @property
    def folder(self) -> str:
        """Name of the category's folder."""
        return "-".join(re.findall("[a-z]+", self.category.lower()))

    @property
    def file(self) -> str:
        """Path of the picture in the data set."""
        return f"{'test' if self.held_out else 'train'}/{self.folder}/{self.style}-{self.image}"

    def tone_text(self) -> str:
        """The part of a caption that tells the skin tones."""
        names = dict.fromkeys(self.tones)  # one that is written twice is named once
        return f", {' and '.join(names)} skin tone" if names else ""

    def caption(self) -> str:
        """What the picture shows, in words."""
        return f"{self.label}{self.tone_text()}, {self.style} style"

    def captions(self) -> list[str]:
        """Twenty captions, of which training draws: 60% as they are, others in other words."""
        tone, style = self.tone_text(), f", {self.style} style"
        worded = [self.label] * 3
        if self.tags:
            start = number(f"tags:{self.style}:{self.unified}")
            first, second, behind, third, fourth = (
                self.tags[(start + i) % len(self.tags)] for i in range(5)
            )
            worded = [
                f"{first}, {second}, {self.label}", f"{self.label}, {behind}", f"{third}, {fourth}"
            ]  # fmt: skip
        return [
            *[self.caption()] * 12,
            *[f"{self.style} style: {self.label}{tone}"] * 3,
            *[f"{words}{tone}{style}" for words in worded],
            *[f"{self.label}{tone}"] * 2,
        ]

    def role_captions(self) -> list[str]:
        """The same where two tell the gender of a role alone, and four name the neutral one too."""
        captions, tone, style = self.captions(), self.tone_text(), f", {self.style} style"
        if self.gender != "none":
            captions[:2] = [f"some {self.gender}{tone}{style}"] * 2
        if self.gender == "person" and "person" not in self.label:
            captions[2:6] = [f"person {self.label}{tone}{style}"] * 4
        return captions


def number(text: str) -> int:
    """A number of 64 bits that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def plain(unified: str) -> str:
    """Code points without the one that asks for color."""
    return unified.replace("-FE0F", "")


def family_of(unified: str) -> tuple[str, str]:
    """Code points without gender, and the gender, of an emoji without skin tone."""
    points = plain(unified).split("-")
    gender = "none"
    if MALE in points:
        gender = "man"
    elif FEMALE in points:
        gender = "woman"
    elif JOINER in points and not OTHERS & set(points[1:]):
        gender = GENDERS.get(points[0], "none")
    rest = [point for point in points if point not in (FEMALE, MALE)]
    while rest and rest[-1] == JOINER:
        rest.pop()
    if gender != "none" and rest and rest[0] in GENDERS:
        rest[0] = "1F9D1"
    return "-".join(rest).replace(f"-{JOINER}-{JOINER}", f"-{JOINER}"), gender


def list_emoji(
    entries: Iterable[Mapping[str, Any]], names: Iterable[Mapping[str, Any]]
) -> list[Emoji]:
    """All pictures, in the order of the packages.

    Args:
        entries: content of emoji.json.
        names: content of data.json of emojibase.
    """
    named = {plain(name["hexcode"]): name for name in names}
    found = []
    for entry in entries:
        family, gender = family_of(entry["unified"])
        name = named[plain(entry["unified"])]
        for tone, variant in {"": entry, **entry.get("skin_variations", {})}.items():
            tones = tuple(TONES[point] for point in tone.split("-") if point)
            found += [
                Emoji(
                    variant["image"], style, variant["unified"], entry["unified"], family, gender,
                    tones, name["label"], tuple(name.get("tags", ())), entry["category"],
                )
                for style in STYLES
            ]  # fmt: skip
    for both in _families(found).values():
        for emoji in both:
            if emoji.gender == "none":
                emoji.gender = "person"
    return found


def _families(emoji: Iterable[Emoji]) -> dict[str, list[Emoji]]:
    """The families that have men and women."""
    families = defaultdict(list)
    for one in emoji:
        families[one.family].append(one)
    return {
        name: members
        for name, members in families.items()
        if {"man", "woman"} <= {one.gender for one in members}
    }


def hold_out(emoji: Iterable[Emoji]) -> None:
    """Set ``held_out`` of the pictures that are not trained on.

    B: all of one gender and style of a family. A: a skin tone of a person in one style, whose other
    tones are trained on. C: one style of a thing, whose other style is trained on.
    """
    emoji = list(emoji)
    for family, members in sorted(_families(emoji).items()):
        if number(f"block:{family}") % 6 == 0:
            which = number(f"which:{family}") % 4
            block = (("man", "woman")[which // 2], tuple(STYLES)[which % 2])
            for one in members:
                if (one.gender, one.style) == block:
                    one.held_out = "B"
    of_base = defaultdict(list)
    for one in emoji:
        if len(one.tones) == 1:
            of_base[one.base].append(one)
    for members in of_base.values():
        if any(one.held_out for one in members):
            continue
        taken, counts = set(), Counter[str]()
        for one in sorted(members, key=lambda one: (one.unified, one.style)):
            drawn = number(f"tone:{one.style}:{one.unified}") % 20 == 0
            if drawn and one.unified not in taken and counts[one.style] < 2:
                one.held_out = "A"
                taken.add(one.unified)
                counts[one.style] += 1
    for one in emoji:
        if one.category not in ("People & Body", "Flags", "Component") and not one.tones:
            drawn = number(f"style:{one.base}") % 40
            if drawn < 2 and one.style == tuple(STYLES)[drawn]:
                one.held_out = "C"


def read_packages(folder: Path) -> tuple[list[Emoji], dict[str, bytes]]:
    """The pictures that the packages in a folder have, and the contents of their files by path."""
    google, twitter, base = (folder / name for name in PACKAGES)
    entries = json.loads(_read(google, r"package/emoji\.json")["package/emoji.json"])
    names = json.loads(_read(base, r"package/en/data\.json")["package/en/data.json"])
    emoji = list_emoji(entries, names)
    hold_out(emoji)
    files = {}
    for package, style in ((google, "noto"), (twitter, "twemoji")):
        content = _read(package, rf"package/img/{STYLES[style]}/64/[^/]+\.png")
        files |= {f"{style}-{name.rpartition('/')[2]}": data for name, data in content.items()}
    return emoji, files


def _read(package: Path, pattern: str) -> dict[str, bytes]:
    """Contents of the files of an archive whose path fits."""
    found = {}
    with tarfile.open(package) as tar:
        for member in tar:
            if re.fullmatch(pattern, member.name) and (file := tar.extractfile(member)):
                found[member.name] = file.read()
    return found


def placed(picture: Image.Image, side: int, down: int, right: int) -> Image.Image:
    """A square picture in another size on white, of which what leaves the page is lost."""
    page = Image.new("RGB", picture.size, "white")
    if side != picture.width:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    page.paste(picture, (right, down))
    return page


def shifts() -> Iterator[list[Place]]:
    """For each picture its own place, and others of the same size."""
    draws, near = random.Random(0), range(-SHIFT, SHIFT + 1)
    moves = [(SIZE, -down, -right) for down in near for right in near]
    moves.remove((SIZE, 0, 0))
    while True:
        yield [(SIZE, 0, 0), *draws.sample(moves, 5)]


def sizes_and_places() -> Iterator[list[Place]]:
    """For each picture many sizes and places."""
    draws = random.Random(7)

    def draw() -> Place:
        side = draws.choice(SIDES)
        free = SIZE - side + SHIFT
        return side, draws.randint(-SHIFT, free), draws.randint(-SHIFT, free)

    while True:
        yield [draw() for _ in range(14)]


COPIES = {"shifted": shifts, "varied": sizes_and_places}


def write_copies(emoji: Iterable[Emoji], out: Path, name: str) -> None:
    """Write the training pictures that `write` has written again, in places of ``COPIES[name]``."""
    lines, trained = [], [one for one in emoji if not one.held_out]
    for one, places in zip(trained, COPIES[name](), strict=False):
        picture = read_image(out / one.file)
        for i, place in enumerate(places):
            file = Path(one.file.replace("train/", f"{name}/"))
            file = file.with_name(f"{file.stem}-{i}.png")
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            placed(picture, *place).save(out / file)
            content = {**asdict(one), "image": str(file)}
            lines.append(json.dumps({"captions": one.role_captions(), **content}))
    (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def write(emoji: Iterable[Emoji], files: Mapping[str, bytes], out: Path) -> None:
    """Write pictures and captions."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for one in emoji:
        path = out / one.file
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{one.style}-{one.image}"
        decode_image(files[name], name).save(path)
        captions = [one.caption()] if one.held_out else one.captions()
        content = {"captions": captions, **asdict(one), "image": one.file}
        lines[one.file.partition("/")[0]].append(json.dumps(content))
    for split, of_split in lines.items():
        (out / f"{split}.jsonl").write_text("\n".join(of_split) + "\n")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the .tgz files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    for name, digest in PACKAGES.items():
        if sha256(options.packages / name) != digest:
            parser.error(f"{options.packages / name} is another file than that of the recipe")
    emoji, files = read_packages(options.packages)
    write(emoji, files, options.out)
    for name in COPIES:
        write_copies(emoji, options.out, name)
    counts = Counter(one.held_out for one in emoji)
    held_out = ", ".join(f"{counts[kind]} {kind}" for kind in "ABC")
    print(f"{len(emoji)} pictures, {len(emoji) - counts['']} of them held out ({held_out})")


if __name__ == "__main__":
    main()
