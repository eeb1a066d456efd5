"""Changes to files that keep their structure, so that more than the first check is reached."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "changed_json",
    "havoc",
    "json_bytes",
    "mutate_archive",
    "mutate_chunks",
    "mutate_directory",
    "mutate_npy",
    "mutate_pickle",
    "mutate_riff",
    "mutate_safetensors",
    "mutate_tar",
    "nonsense",
    "rezipped",
]

_DEEP = 3000
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1,
    2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**30, 10**400, 0.5, -0.0,
    1e-308, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
_TEXTS = (
    "", "a", "abc", "6", "true", "../../x", "/etc/passwd", "a/b", ".", "..", "a\0b", "\ud800",
    "\u202e", "x" * 5000, "%s%n", "config.json", "\N{PILE OF POO}", "model-0.safetensors",
)  # fmt: skip
_WORDS = (b"", b"\0", b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"{", b"}", b"[" * 9, b"PK\3\4", b"..")


_DEEPEST_CHANGE = 100


def nonsense(draws: random.Random) -> Any:
    """A value of any kind that JSON has."""
    kind = draws.randrange(8)
    if kind == 0:
        return draws.choice((None, True, False, {}, [], [None], [1, [], {}], {"a": {"b": 1}}))
    if kind == 1:
        deep: Any = []
        for _ in range(draws.choice((5, 200, 500))):
            deep = [deep] if draws.random() < 0.5 else {"a": deep}
        return deep
    if kind == 2:
        return [draws.choice(_NUMBERS[:12])] * draws.choice((2, 17, 3000))
    return draws.choice(_NUMBERS if kind < 6 else _TEXTS)


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = ()
    if len(path) == _DEEPEST_CHANGE:
        return
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content[:20])
    for key, value in items:
        yield from _places(value, (*path, key))


def changed_json(content: Any, draws: random.Random) -> Any:
    """A copy with one to three places changed, removed, added, doubled or exchanged."""
    content = {"": copy.deepcopy(content)}
    for _ in range(draws.choice((1, 1, 1, 2, 3))):
        path = draws.choice(list(_places(content))[1:] or [("",)])
        parent: Any = content
        for key in path[:-1]:
            parent = parent[key]
        key, kind = path[-1], draws.randrange(6)
        if kind == 0 and len(path) > 1:
            del parent[key]
        elif kind == 1 and isinstance(parent[key], dict):
            parent[key][draws.choice(_TEXTS)] = nonsense(draws)
        elif kind == 2 and isinstance(parent[key], list):
            parent[key] = parent[key] * draws.choice((0, 2, 50)) + [nonsense(draws)]
        elif kind == 3 and isinstance(parent[key], int | float):
            parent[key] = parent[key] * draws.choice((-1, 2, 1000, 10**9)) + draws.choice((0, 1))
        else:
            parent[key] = nonsense(draws)
        if "" not in content:
            content[""] = None
    return content[""]


def json_bytes(content: Any, draws: random.Random) -> bytes:
    """JSON of a changed copy; one in four times as text that may be none."""
    text = json.dumps(changed_json(content, draws), indent=draws.choice((None, 1)))
    data = text.encode("utf-8", "surrogatepass")
    kind = draws.randrange(16)
    if kind == 0:
        depth = draws.choice((_DEEP, 100_000))
        return b"[" * depth + b"]" * draws.choice((0, depth))
    if kind == 1:
        return b'{"a":' * _DEEP + b"1" + b"}" * _DEEP
    if kind == 2:
        return draws.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\x80")) + data
    if kind == 3:
        return havoc(data, draws)
    return data


def havoc(data: bytes, draws: random.Random) -> bytes:
    """Bytes flipped, inserted, removed, doubled or replaced in a few places."""
    changed = bytearray(data)
    for _ in range(draws.choice((1, 2, 4, 8))):
        at = draws.randrange(len(changed) + 1)
        kind, size = draws.randrange(6), draws.choice((1, 2, 4, 8, 64))
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draws.randrange(8)
        elif kind == 1:
            changed[at:at] = draws.choice(_WORDS)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        elif kind == 4:
            changed[at : at + size] = draws.randbytes(size)
        else:
            value = int(draws.choice(_NUMBERS[:20])) & (2**64 - 1)
            order, width = draws.choice("<>"), draws.choice((2, 4, 8))
            packed = struct.pack(f"{order}Q", value)
            changed[at : at + width] = packed[:width] if order == "<" else packed[-width:]
    return bytes(changed)


def mutate_safetensors(data: bytes, draws: random.Random) -> bytes:
    """Header, offsets, dtypes, shapes or length of a safetensors file changed."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = draws.randrange(8)
    if kind == 0:
        length = draws.choice((0, 1, size - 1, size + 1, len(data), 10**8 + 1, 2**63, 2**64 - 1))
        return length.to_bytes(8, "little") + data[8:]
    if kind == 1:
        return data + bytes(draws.choice((1, 8, 4096)))
    if kind == 2:
        return havoc(data[: 8 + size], draws) + body
    names = [name for name in header if name != "__metadata__"]
    name = draws.choice(names)
    entry = header[name]
    if kind == 3:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = draws.choice((
            [start, end + 4], [start + 4, end], [end, start], [0, len(body)], [0, 2**63],
            [2**64 - 1, 2**64 - 1], [start, len(body) + 4], [-1, end], [start], [0.0, 4.0],
            header[draws.choice(names)]["data_offsets"],
        ))  # fmt: skip
    elif kind == 4:
        entry["dtype"] = draws.choice((
            "F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "U64",
            "C64", "F4", "F8_E8M0", "X", "", None,
        ))  # fmt: skip
    elif kind == 5:
        entry["shape"] = draws.choice((
            [], [0], [2**31], [2**32, 2**32], [2**63], [-1], [1] * 100, entry["shape"][::-1],
            [*entry["shape"], 1], [1.5], None, ["a"],
        ))  # fmt: skip
    elif kind == 6:
        header[draws.choice((*_TEXTS, f"{name}.weight_scale", f"module.{name}", "scaled_fp8"))] = (
            header.pop(name) if draws.random() < 0.5 else entry
        )
    else:
        header = changed_json(header, draws)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def mutate_npy(data: bytes, draws: random.Random) -> bytes:
    """Version, header or values of a ``.npy`` file changed."""
    size = int.from_bytes(data[8:10], "little")
    header, body = data[10 : 10 + size], data[10 + size :]
    kind = draws.randrange(6)
    if kind == 0:
        version = draws.choice((b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\0\0"))
        return data[:6] + version + data[8:]
    if kind == 1:
        return data[:8] + draws.choice((b"\0\0", b"\xff\xff", b"\1\0")) + data[10:]
    if kind == 2:
        return data[: 10 + size] + havoc(body, draws)
    if kind == 3:
        header = havoc(header, draws)
    else:
        number = int(draws.choice(_NUMBERS[:24]))
        shape = draws.choice((
            (), (0,), (number,), (number, 2), (2**40, 2**40), (1,) * 70, "x", None, (1.5,), [3],
        ))  # fmt: skip
        descr = draws.choice((
            "|u1", "|i1", "<i8", ">i8", "<f8", "|O", "V10", "S9", "U3", [("a", "<i4")], "M8[s]",
            number, None, "<i8,<i8", "(3,)i4",
        ))  # fmt: skip
        content = {"descr": descr, "fortran_order": draws.random() < 0.2, "shape": shape}
        text = repr(content) if draws.random() < 0.9 else "(" * _DEEP
        header = text.encode("utf-8", "surrogatepass") + b"\n"
    header = header[:60_000]
    return data[:8] + len(header).to_bytes(2, "little") + header + body


def rezipped(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """An archive with changed members and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def mutate_pickle(data: bytes, draws: random.Random) -> bytes:
    """Opcodes of the pickle of a file of ``torch.save``, or a record, changed; sums are right."""

    def change(members: dict[str, bytes]) -> None:
        names = [name for name in members if name.endswith("data.pkl")]
        name = names[0] if draws.random() < 0.8 else draws.choice(list(members))
        members[name] = havoc(members[name], draws)
        if draws.random() < 0.1:
            members.pop(draws.choice(list(members)))

    return rezipped(data, change)


def mutate_archive(data: bytes, draws: random.Random) -> bytes:
    """Fields of an archive's directory or of a member's head changed."""
    marks = [b"PK\3\4", b"PK\1\2", b"PK\5\6"]
    mark = draws.choice([mark for mark in marks if mark in data])
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 4)
    at = draws.choice(places) + draws.randrange(4, 46)
    width = draws.choice((1, 2, 4))
    value = int(draws.choice(_NUMBERS[:18])) & (2**64 - 1)
    return data[:at] + value.to_bytes(8, "little")[:width] + data[at + width :]


def mutate_chunks(data: bytes, draws: random.Random) -> bytes:
    """Chunks of a PNG changed, doubled, removed or exchanged, most with right checksums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    i, kind = draws.randrange(len(chunks)), draws.randrange(7)
    name, content = chunks[i]
    if kind == 0:
        chunks.insert(draws.randrange(len(chunks)), chunks[i])
    elif kind == 1:
        del chunks[i]
    elif kind == 2:
        name, content = chunks[0]
        sides = [draws.choice((0, 1, 12, 60000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        rest = bytes(draws.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
        kept = content[8:] if draws.random() < 0.5 else rest
        chunks[0] = name, struct.pack(">II", *sides) + kept
    elif kind == 3:
        names = (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")
        bomb = zlib.compress(bytes(5_000_000))
        extra = draws.choice(
            (b"", draws.randbytes(30), b"a\0\0" + bomb, b"a\0\0\xff", b"II*\0" * 9)
        )
        chunks.insert(1, (draws.choice(names), extra))
    elif kind == 4:
        chunks[i] = draws.choice((b"IDAT", b"IEND", b"\xff\0\0a", b"iDAT", b"PLTE")), content
    else:
        chunks[i] = name, havoc(content, draws)
    result = data[:8]
    for name, content in chunks:
        checksum = zlib.crc32(name + content)
        result += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return result if draws.random() < 0.9 else havoc(result, draws)


def mutate_riff(data: bytes, draws: random.Random) -> bytes:
    """Sizes and chunks of a WebP changed."""
    at = draws.choice((4, 8, 12, 16, 20, 24))
    width = draws.choice((1, 4))
    value = int(draws.choice(_NUMBERS[:18])) & (2**64 - 1)
    changed = data[:at] + value.to_bytes(8, "little")[:width] + data[at + width :]
    return changed if draws.random() < 0.6 else havoc(changed, draws)


def mutate_directory(data: bytes, draws: random.Random) -> bytes:
    """Entries of a TIFF's directory changed."""
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    at = start + 2 + 12 * draws.randrange(max(count, 1))
    tag, kind, number, value = struct.unpack("<HHII", data[at : at + 12].ljust(12, b"\0"))
    field, big = draws.randrange(4), int(draws.choice(_NUMBERS[:18])) & 0xFFFFFFFF
    tag = (
        draws.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 339, tag)) if not field else tag
    )
    kind = draws.randrange(20) if field == 1 else kind
    number = big if field == 2 else number
    value = big if field == 3 else value
    changed = data[:at] + struct.pack("<HHII", tag, kind, number, value) + data[at + 12 :]
    return changed if draws.random() < 0.8 else havoc(changed, draws)


def mutate_tar(data: bytes, draws: random.Random) -> bytes:
    """Fields of a member's head changed, with its right checksum."""
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = draws.choice(heads)
    head = bytearray(data[at : at + 512])
    field, size = draws.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100)))
    texts = (
        b"../../x.png", b"/etc/x.png", b"a\xff.png", b"", b"x.tar", b"7777777777", b"-1",
        b"\x80" + b"\xff" * 11, b"\xff" * 12, b"L", b"x", b"S", b"2", b"5", b"00000000010",
    )  # fmt: skip
    value = draws.choice(texts) if draws.random() < 0.8 else draws.randbytes(size)
    head[field : field + size] = value[:size].ljust(size, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return data[:at] + bytes(head) + data[at + 512 :]
