"""Images with captions: every source gives the same, and says what is missing."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bitdance.data.buckets import aspect_sizes, nearest_size
from bitdance.data.captioned_images import iterate_captioned_images
from bitdance.io.image_files import ImageError

CAPTIONS = (["a red fox", "ثعلب أحمر 🦊"], ["x" * 10_000], ["one", "two", "one"])


def picture(number, mode="RGB"):
    """The content of a PNG file, and its pixels on white."""
    color = (40 * number, 90, 200 - number)
    image = Image.new("RGBA", (9 + number, 7), (*color, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 7))  # black, but transparent
    if mode == "RGB":
        image = image.convert("RGB")
    elif mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = image.quantize(8)
    expected = Image.new("RGBA", image.size, "white")
    expected.alpha_composite(image.convert("RGBA"))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue(), np.array(expected.convert("RGB"))


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write(folder, kind, mode="RGB"):
    """A source of three images; returns its path."""
    contents = [picture(i, mode)[0] for i in range(3)]
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as tar:
            for i, content in enumerate(contents):
                add(tar, f"x/{i}.png", content)
                if len(CAPTIONS[i]) == 1:
                    add(tar, f"x/{i}.txt", f" {CAPTIONS[i][0]}\n".encode())
                text = json.dumps({"captions": CAPTIONS[i], "width": 1})
                add(tar, f"x/{i}.json", text.encode())
        return folder / "a.tar"
    for i, content in enumerate(contents):
        (folder / f"{i}.png").write_bytes(content)
    if kind == "jsonl":
        lines = [{"image": f"{i}.png", "captions": CAPTIONS[i]} for i in range(3)]
        lines[1] = {"file_name": "1.png", "text": CAPTIONS[1][0]}
        text = "\ufeff" + "\n\n".join(json.dumps(line) for line in lines)
        (folder / "a.jsonl").write_text(text, "utf-8")
        return folder / "a.jsonl"
    names = [f"{i}.png" for i in range(3)]
    images = {
        "bytes": contents,
        "files": names,
        "pairs": [{"bytes": contents[0], "path": None}, {"bytes": None, "path": names[1]},
                  {"bytes": contents[2], "path": names[2]}],
    }[kind]  # fmt: skip
    table = pa.table({"image": images, "captions": list(CAPTIONS), "other": [1, 2, 3]})
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["jsonl", "tar", "bytes", "files", "pairs"])
def test_every_source_gives_images_on_white_and_all_captions(tmp_path, kind, mode):
    found = list(iterate_captioned_images(write(tmp_path, kind, mode)))
    assert [list(image.captions) for image in found] == list(CAPTIONS)
    for i, image in enumerate(found):
        assert np.array_equal(np.array(image.read("white")), picture(i, mode)[1])
    ids = {
        "jsonl": ["0.png", "1.png", "2.png"],
        "tar": ["a.tar/x/0.png", "a.tar/x/1.png", "a.tar/x/2.png"],
        "bytes": ["a.parquet:0", "a.parquet:1", "a.parquet:2"],
        "files": ["0.png", "1.png", "2.png"],
        "pairs": ["a.parquet:0", "1.png", "a.parquet:2 2.png"],
    }
    assert [image.id for image in found] == ids[kind]


def test_a_pattern_names_several_files(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": name, "caption": name}))
    found = iterate_captioned_images(f"{tmp_path}/{{b,a}}.jsonl")
    assert [image.id for image in found] == ["b", "a"]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*c\.jsonl"):
        iterate_captioned_images(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"must be in a \.jsonl, \.parquet or \.tar file"):
        iterate_captioned_images(tmp_path)


BAD_LINES = [
    ('{"image": "0.png"}', "line 1 must have captions, caption or text, got"),
    ('{"caption": "a"}', "line 1 must have image, file_name or path, got"),
    ('{"image": 3, "caption": "a"}', "line 1: the image must be a path, got 3"),
    ('{"image": "0.png", "caption": []}', "line 1 has no caption"),
    ('{"image": "0.png", "caption": ["a", " "]}', "line 1 has an empty caption"),
    ('{"image": "0.png", "caption": ["a", 3]}', "line 1: captions must be a text or a list"),
    ('{"image": "0.png", "caption": null}', "line 1: captions must be a text or a list"),
    ('{"image": "0.png", "caption": "\\ud800"}', "line 1: captions must be Unicode"),
    ('["0.png", "a"]', "line 1 must be a JSON object"),
    ('{"image": ', "line 1 is not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_line_says_what_is_wrong(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line + '\n{"image": "b.png", "caption": "b"}\n')
    error, intact = iterate_captioned_images(tmp_path / "a.jsonl")
    assert isinstance(error, ImageError)
    assert message in str(error)
    assert intact.captions == ("b",)
    with pytest.raises(ImageError, match=r"b\.png is not an image file: No such file"):
        intact.read("white")


BAD_SAMPLES = [
    ({"0.png": b""}, "0.png has no caption"),
    ({"0.txt": b"a"}, "0.txt has no image beside it"),
    ({"0.json": b'{"caption": "a"}'}, "0.json has no image beside it"),
    ({"0.png": b"", "0.txt": b" \n"}, "0.txt has an empty caption"),
    ({"0.png": b"", "0.txt": b"\xff"}, "0.txt is not UTF-8"),
    ({"0.png": b"", "0.json": b"{"}, "0.json is not JSON"),
    ({"0.png": b"", "0.json": b"[]"}, "0.json must be a JSON object"),
    ({"0.png": b"", "0.json": b"{}"}, "0.json must have captions, caption or text"),
    ({"0.png": b"", "0.jpg": b"", "0.txt": b"a"}, "0.jpg is a second image of one sample"),
    ({"0.png": b"", "0.txt": b"a" * (2**20 + 1)}, "0.txt must have at most"),
]


@pytest.mark.parametrize(("files", "message"), BAD_SAMPLES)
def test_a_sample_says_what_is_wrong(tmp_path, files, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {**files, "1.png": b"", "1.txt": b"b", "2.json": b"{}"}.items():
            add(tar, name, content)
    error, intact = iterate_captioned_images(tmp_path / "a.tar")
    assert message in str(error)
    assert intact.captions == ("b",)


def test_damaged_files_are_errors_behind_what_is_intact(tmp_path):
    path = write(tmp_path, "tar")
    path.write_bytes(path.read_bytes()[:2300])  # in the header of the second image
    intact, error = iterate_captioned_images(path)
    assert (list(intact.captions), "a.tar" in str(error)) == (CAPTIONS[0], True)
    path = write(tmp_path, "bytes")
    path.write_bytes(path.read_bytes()[:-9])
    (error,) = iterate_captioned_images(path)
    assert "a.parquet is not a complete Parquet file" in str(error)
    pq.write_table(pa.table({"image": [b"x", None], "text": ["a", "b"]}), path)
    damaged, missing = iterate_captioned_images(path)
    with pytest.raises(ImageError, match=r"a\.parquet:0 is not a complete image"):
        damaged.read("white")
    assert "row 1 has no image" in str(missing)
    pq.write_table(pa.table({"picture": [b"x"], "text": ["a"]}), path)
    (error,) = iterate_captioned_images(path)
    assert "a.parquet must have image, file_name or path, got" in str(error)


@pytest.mark.parametrize("multiple", [2, 16, 48])
@pytest.mark.parametrize("pixels", [48**2, 5000, 2**18])
@pytest.mark.parametrize("ratio", [1, 1.5, 4])
def test_sizes_of_a_budget(pixels, multiple, ratio):
    sizes = aspect_sizes(pixels, multiple, ratio)
    assert sizes == sorted(set(sizes))
    assert any(height == width for height, width in sizes)
    for height, width in sizes:
        assert height % multiple == 0
        assert width % multiple == 0
        assert height * width <= pixels < (height + multiple) * (width + multiple)
        assert max(height, width) <= ratio * min(height, width)
        assert (width, height) in sizes
        if height < width:  # no longer one fits
            assert height * (width + multiple) > pixels


def test_the_nearest_size_is_that_of_the_nearest_proportion():
    sizes = [(32, 64), (64, 64), (64, 32), (128, 128)]
    assert nearest_size(10, 10, sizes) == (128, 128)
    assert nearest_size(100, 190, sizes) == (32, 64)
    assert nearest_size(900, 100, sizes) == (64, 32)
    # Halfway between two, upright as lying.
    assert nearest_size(100, 141, sizes) == (128, 128)
    assert nearest_size(100, 142, sizes) == (32, 64)
    assert nearest_size(142, 100, sizes) == (64, 32)
    with pytest.raises(ValueError, match="max_pixels must be an integer"):
        aspect_sizes(15, 4)
    with pytest.raises(ValueError, match="max_ratio must be a number from 1, got 0"):
        aspect_sizes(64, 4, 0.5)
