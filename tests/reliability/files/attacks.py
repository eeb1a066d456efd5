"""Files that somebody would write on purpose, each of which must be refused.

An attack changes a sample of a format. Reading it raises a documented error, runs no code of the
file (a canary is not made), reads nothing outside of the folder, and takes at most 10 s of
processor time and 1 GB.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bitdance.data.packed_files import INDEX
from tests.reliability.files import attacks_pickles
from tests.reliability.files.attack import CANARY, Attack
from tests.reliability.files.attacks_pickles import each, npy, put_array, put_index
from tests.reliability.files.box import Died, boxed, exhausted, scratch
from tests.reliability.files.formats import Format, registry
from tests.reliability.files.mutations import rezipped

__all__ = ["attacks", "run_all"]

_SURPRISES = (UnicodeError, RecursionError, LookupError, ArithmeticError, MemoryError)
_MIN_ATTACKS = 60


def run_all(share: float = 1, form: str | None = None) -> int:
    """Run every attack; returns how many were refused.

    Args:
        share: share of the attacks, evenly chosen; at least 60 run.
        form: name of the format to attack, by default all.

    Raises:
        AssertionError: one was not.
    """
    formats = {each.name: each for each in registry() if form in (None, each.name)}
    problems = []
    with scratch() as place:
        samples, whole = {}, {}
        for number, (name, each) in enumerate(formats.items()):
            samples[name] = place / "samples" / str(number)
            samples[name].mkdir(parents=True)
            each.make(samples[name])
            with _copy(samples[name], place / "whole") as folder:
                whole[name] = each.load(folder)
        known = [attack for attack in attacks(samples) if attack.format in formats]
        count = min(len(known), max(_MIN_ATTACKS, round(share * len(known))))
        chosen = [known[i * len(known) // count] for i in range(count)]

        def case(number: int) -> str:
            attack = chosen[number]
            with _copy(samples[attack.format], place / f"case-{number}") as folder:
                os.chdir(folder)
                attack.build(folder)
                expected = whole[attack.format] if attack.optional else None
                outcome = _read(formats[attack.format], folder, expected)
                ran = any(path.name == CANARY for path in folder.parent.rglob("*"))
                os.chdir("/")
                return "code of the file ran" if ran else outcome

        for attack, outcome in zip(chosen, boxed(case, len(chosen)), strict=True):
            if outcome != "error":
                text = outcome.why if isinstance(outcome, Died) else outcome
                problems.append(f"{attack.format}: {attack.name}: {text}")
    assert not problems, f"{len(problems)} attacks:\n" + "\n".join(problems)
    return len(chosen)


@contextlib.contextmanager
def _copy(sample: Path, place: Path) -> Iterator[Path]:
    """A copy of a sample, in a folder of its own in which there may be more."""
    shutil.copytree(sample, place / "sample")
    try:
        yield place / "sample"
    finally:
        shutil.rmtree(place)


def _read(each: Format, folder: Path, whole: object) -> str:
    """ "error", or what is wrong. A special file may be none of the kind that was asked for."""
    special = any(not path.is_file() for path in folder.iterdir())
    try:
        found = each.load(folder)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        expected = (*each.errors, OSError, *([ValueError] if special else []))
        if not isinstance(error, expected) or isinstance(error, _SURPRISES):
            return f"another error, {text[:300]}"
        return f"it asks for 1 GB: {text[:300]}" if exhausted(error) else "error"
    return "error" if found == whole else "it is read"


def attacks(samples: Mapping[str, Path]) -> Iterator[Attack]:
    """All attacks on the formats that have a sample."""
    yield from attacks_pickles.pickles()
    yield from attacks_pickles.archives()
    yield from _tensors()
    yield from _settings()
    yield from _outside()
    yield from _bombs()
    yield from _special_files(samples)


def _tensors() -> Iterator[Attack]:
    def header(change: Callable[[dict[str, Any], int], Any]) -> Callable[[bytes], bytes]:
        def build(data: bytes) -> bytes:
            size = int.from_bytes(data[:8], "little")
            content = json.loads(data[8 : 8 + size])
            body = data[8 + size :]
            text = json.dumps(change(content, len(body)) or content).encode()
            return len(text).to_bytes(8, "little") + text + body

        return build

    def first(content: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = content[next(n for n in content if n != "__metadata__")]
        return found

    def same(content: dict[str, Any], size: int) -> None:
        for entry in content.values():
            if "data_offsets" in entry and entry["dtype"] == "F32":
                entry["data_offsets"] = first(content)["data_offsets"]

    def twice(data: bytes) -> bytes:
        """Another tensor for a parameter, by the name that it has in a wrapper."""
        size = int.from_bytes(data[:8], "little")
        content, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        name = next(name for name in content if name != "__metadata__")
        start, end = content[name]["data_offsets"]
        offsets = [len(body), len(body) + end - start]
        content[f"module.{name}"] = {**content[name], "data_offsets": offsets}
        text = json.dumps(content).encode()
        return len(text).to_bytes(8, "little") + text + body + bytes(end - start)

    builds: Mapping[str, Callable[[bytes], bytes]] = {
        "two names for one parameter": twice,
        **{
            f"a head of {length} bytes": partial(_with_length, length)
            for length in (0, 1, 10**8 + 1, 2**40, 2**63, 2**64 - 1)
        },
        "a head of 90 MB of spaces": lambda d: (
            (90_000_000).to_bytes(8, "little") + b"{}" + b" " * 89_999_998
        ),
        "a head that is no text": lambda d: d[:8] + b"\xff" * 20 + d[28:],
        "a head of lists in lists": lambda d: (100_000).to_bytes(8, "little") + b"[" * 100_000,
        "tensors in one place": header(same),
        "a hole": header(lambda c, n: first(c).update(data_offsets=[4, 8], shape=[1])),
        "an end beyond the file": header(lambda c, n: first(c).update(data_offsets=[0, n + 4])),
        "an end before its start": header(lambda c, n: first(c).update(data_offsets=[8, 4])),
        "an offset below zero": header(lambda c, n: first(c).update(data_offsets=[-4, 4])),
        "a shape beyond 2^64": header(lambda c, n: first(c).update(shape=[2**32, 2**33])),
        "a side of 2^63": header(lambda c, n: first(c).update(shape=[2**63])),
        "an unknown dtype": header(lambda c, n: first(c).update(dtype="F1")),
        "more bytes at the end": lambda d: d + b"\0" * 64,
        "no tensor": lambda d: (2).to_bytes(8, "little") + b"{}",
    }
    for name, build in builds.items():
        yield Attack(name, "folder of a model", partial(_put_weights, build))
        if name not in ("no tensor", "a head of 90 MB of spaces"):  # nothing, which is honest
            yield Attack(name, "safetensors alone", each("w.safetensors", partial(_rewrite, build)))
    yield Attack(
        "a checksum of another file",
        "safetensors with a sidecar",
        lambda f: (f / "w.safetensors.sha256").write_text(f"{'0' * 64}  other\n"),
    )
    yield Attack(
        "a checksum of 100 MB",
        "safetensors with a sidecar",
        lambda f: (f / "w.safetensors.sha256").write_bytes(b"0" * 100_000_000),
    )


def _with_length(length: int, data: bytes) -> bytes:
    return length.to_bytes(8, "little") + data[8:]


def _rewrite(build: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(build(path.read_bytes()))


def _write(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


def _put_weights(build: Callable[[bytes], bytes], folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = folder / content["weights"]["file"]
    data = build(path.read_bytes())
    path.write_bytes(data)
    content["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def _settings() -> Iterator[Attack]:
    def put(section: str, **values: Any) -> Callable[[Path], object]:
        def build(folder: Path) -> None:
            path = folder / "config.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            inner = content
            for key in filter(None, section.split(".")):
                inner = inner[key]
            inner.update(values)
            path.write_text(json.dumps(content), encoding="utf-8")

        return build

    for key, value in {
        "n_layer": 10**7, "diff_layers": 10**8, "dim": 2**62, "resolution": 2**40,
        "num_classes": 2**31, "cls_token_num": 2**31, "parallel_num": 2**20, "n_head": 0,
        "patch_size": 2**30, "diff_dim": -64, "time_shift": float("inf"), "P_std": float("nan"),
    }.items():  # fmt: skip
        yield Attack(f"{key} = {value}", "folder of a model", put("model", **{key: value}))
    for key, wide in {
        "ch_mult": [1] * 100_000, "z_channels": 2**40, "num_res_blocks": 10**8, "ch": 2**50,
        "num_codebooks": 0,
    }.items():  # fmt: skip
        yield Attack(
            f"{key} too large", "folder of a model", put("model.autoencoder", **{key: wide})
        )
    values: dict[str, Any] = {
        "steps": float("inf"), "classes": 5, "format": None, "weights": [], "model": [[]] * 9,
    }  # fmt: skip
    deepest = {"n_layer": 2**12, "diff_layers": 2**12, "diff_adanln_layers": 2**12}
    yield Attack("as deep as can be", "folder of a model", put("model", **deepest))
    yield Attack("fewer names than classes", "folder of a model", put("", classes=["a"]))
    for key, odd in values.items():
        yield Attack(f"{key} = {odd}", "folder of a model", put("", **{key: odd}))
    for name, text in {
        "lists in lists": b"[" * 200_000, "objects in objects": b'{"a":' * 200_000,
        "100 MB of JSON": b'{"a": "' + b"x" * 100_000_000 + b'"}', "a key twice": b'{"a":1,"a":2}',
        "not UTF-8": b'{"a": "\xff"}', "a number of 10^5 digits": b'{"a": ' + b"9" * 10**5 + b"}",
    }.items():  # fmt: skip
        for form, file in (
            ("folder of a model", "config.json"), ("packed codes", INDEX),
            ("text-to-image release", "config.json"), ("blocks of samples", "samples.json"),
        ):  # fmt: skip
            yield Attack(name, form, partial(_write, file, text))
    for name, text in {
        "arrays in arrays": b"a = " + b"[" * 100_000,
        "tables in tables": b"a.b." * 50_000 + b"c = 1",
        "a number of 10^5 digits": b"a = " + b"9" * 10**5, "not UTF-8": b"a = '\xff'",
    }.items():  # fmt: skip
        yield Attack(name, "run folder", partial(_write, "config.toml", text))


def _outside() -> Iterator[Attack]:
    """Files outside of the folder that are there and whole."""

    def weights(name: str, folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        path = folder / content["weights"]["file"]
        os.replace(path, folder.parent / "outside.safetensors")
        content["weights"]["file"] = name.format(parent=folder.parent)
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")

    def packed(name: str, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        codes = index["shards"][0]["codes"]
        os.replace(folder / codes["file"], folder.parent / "outside.npy")
        codes["file"] = name.format(parent=folder.parent).replace(".safetensors", ".npy")
        put_index(folder, index)

    def parts(name: str, folder: Path) -> None:
        (index,) = list((folder / "m" / "text_encoder").glob("*.index.json"))
        content = json.loads(index.read_text(encoding="utf-8"))
        old = sorted(set(content["weight_map"].values()))[0]
        os.replace(index.with_name(old), folder.parent / "outside.safetensors")
        other = name.format(parent=folder.parent).replace("../", "../../../")
        for key, file in content["weight_map"].items():
            content["weight_map"][key] = other if file == old else file
        index.write_text(json.dumps(content), encoding="utf-8")

    for name in ("../outside.safetensors", "{parent}/outside.safetensors",
                 "./../outside.safetensors", "../sample/../outside.safetensors"):  # fmt: skip
        for form, build in (
            ("folder of a model", weights), ("packed codes", packed),
            ("folders of diffusers, weights in parts", parts),
        ):  # fmt: skip
            yield Attack(f"a file named {name}", form, partial(build, name))


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), *chunks, (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + crc
    return data


def _bombs() -> Iterator[Attack]:
    zeros = zlib.compress(bytes(1 << 26), 9)
    pictures = {
        "60000 x 60000 pixels": _png(60000, 60000, (b"IDAT", zeros)),
        "2^31 x 2^31 pixels": _png(2**31 - 1, 2**31 - 1, (b"IDAT", zeros)),
        "no pixels": _png(0, 0, (b"IDAT", zeros)), "no data": _png(10, 10),
        "a text that inflates": _png(
            10, 10, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27), 9))] * 9
        ),
    }  # fmt: skip
    for name, data in pictures.items():
        yield Attack(name, "picture, png", partial(_write, "a.png", data))

    def inflate(folder: Path) -> None:
        path = next(folder.glob("*images*"))
        size = 60_000 * 28 * 28
        head = b"\0\0\x08\3" + struct.pack(">III", 2**31, 28, 28)
        path.write_bytes(gzip.compress(head + bytes(size)))

    yield Attack("a gzip file that inflates", "IDX in gzip", inflate)
    yield Attack("a shape beyond memory", "IDX", lambda f: next(f.glob("*images*")).write_bytes(
        b"\0\0\x08\3" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1)))  # fmt: skip
    for shape in ((2**40, 4, 2), (10, 2**62, 2), (10, 4)):
        yield Attack(
            f"an array {shape}", "packed codes",
            partial(put_array, npy("|u1", shape) + bytes(80)),
        )  # fmt: skip
    for count, width in ((2**62, 2), (64, 2**58), (150, 0), (2**64 - 1, 2**64 - 1)):
        yield Attack(
            f"an index of {count} codes of {width} bytes", "index of codes",
            each("codes.index", partial(_put_codes, count, width)),
        )  # fmt: skip
    for sides in ((10**9, 4, 4, 3), (12, 2**20, 2**20, 3), (12, 2**62, 4, 3), (11, 4, 4, 3)):
        yield Attack(
            f"images {sides}", "images as .npz",
            partial(_put_member, "arr_0.npy", npy("|u1", sides) + bytes(12 * 48)),
        )  # fmt: skip
    yield Attack(
        "statistics of 2^20 features", "statistics of features",
        partial(_put_member, "sigma.npy", npy("<f8", (2**20, 2**20)) + bytes(64)),
    )  # fmt: skip


def _put_codes(count: int, width: int, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16:32] = struct.pack("<QQ", count, width)
    data[32:36] = zlib.crc32(data[:32]).to_bytes(4, "little")
    path.write_bytes(bytes(data))


def _put_member(name: str, content: bytes, folder: Path) -> None:
    (path,) = folder.glob("*.npz")
    path.write_bytes(rezipped(path.read_bytes(), lambda members: members.update({name: content})))


def _special_files(samples: Mapping[str, Path]) -> Iterator[Attack]:
    """In the place of a file of each kind: a pipe, a device, a loop, a folder."""
    makers: Mapping[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a folder": lambda path: path.mkdir(),
    }

    def build(file: Path, make: Callable[[Path], object], folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    for form, folder in samples.items():
        if form == "tables of kernels":  # they are part of the installed package
            continue
        kinds: dict[str, Path] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            kinds.setdefault(path.name if path.suffix == ".json" else path.suffix, path)
        for path in kinds.values():
            file = path.relative_to(folder)
            for name, make in makers.items():
                if form == "folder of pictures" and name == "a folder":
                    continue  # one more to look into
                yield Attack(
                    f"{name} as {file}", form,
                    partial(build, file, make), optional=True,
                )  # fmt: skip
