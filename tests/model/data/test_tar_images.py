"""Images in tar archives: ILSVRC2012's, folders, webdataset shards; damage and bad names."""

import io
import json
import os
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.data.images import open_images
from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.tar_index import expand_pattern
from bitdance.io.image_files import ImageError
from tests.model.helpers.tiny import tiny_model


def png(color, size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, format="PNG")
    return out.getvalue()


def tar(files, *, end=True):
    """Content of an archive of (name, content) or TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        last = archive.offset
    return out.getvalue() if end else out.getvalue()[:last]


def images_of(path, **options):
    images = open_images(path, 8, **options)
    pixels = images.take(np.arange(len(images)))
    return images, [tuple(p[:, 4, 4].tolist()) for p in pixels]


CLASSES = ("n01", "n02")


def imagenet(path):
    inner = [
        (f"{name}.tar", tar([(f"{name}_{i}.PNG", png((100 * k, 10 * i, 7))) for i in range(3)]))
        for k, name in reversed(list(enumerate(CLASSES)))
    ]
    path.write_bytes(tar(inner))
    return path


COLORS = [(100 * k, 10 * i, 7) for k in range(2) for i in range(3)]


def test_an_archive_of_archives_has_a_class_for_each(tmp_path):
    images, colors = images_of(imagenet(tmp_path / "ILSVRC2012_img_train.tar"))
    assert images.classes == CLASSES
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert colors == COLORS
    images, colors = images_of(tmp_path / "ILSVRC2012_img_train.tar", labeled=False)
    assert (images.classes, sorted(colors)) == (("",), COLORS)
    with pytest.raises(FileNotFoundError, match="has only the split 'train'"):
        open_images(tmp_path / "ILSVRC2012_img_train.tar", 8, split="test")


@pytest.mark.parametrize("root", ["", "./", "data/"])
def test_an_archive_of_folders(tmp_path, root, caplog):
    files = [(f"{root}{name}/{i}.png", png((100 * k, 10 * i, 7)))
             for k, name in enumerate(CLASSES) for i in range(3)]  # fmt: skip
    extra = [(root + name, b"x") for name in ("n01/notes.txt", ".DS_Store", "n01/._0.png")]
    (tmp_path / "x.tar").write_bytes(tar([*files[::-1], *extra]))
    images, colors = images_of(tmp_path / "x.tar")
    assert (images.classes, images.labels.tolist()) == (CLASSES, [0, 0, 0, 1, 1, 1])
    assert colors == COLORS
    assert "1 files that are not images (.txt 1)" in caplog.text
    images, colors = images_of(tmp_path / "x.tar", classes=["n02"])
    assert (images.classes, colors) == (("n02",), COLORS[3:])
    with pytest.raises(ValueError, match=r"must be class folders .*got 'n09'"):
        open_images(tmp_path / "x.tar", 8, classes=["n09"])


def test_splits_of_an_archive_have_the_classes_of_the_training_split(tmp_path):
    files = [(f"{part}/{name}/0.png", png((9, 9, 9)))
             for part, names in (("train", "abc"), ("val", "bc")) for name in names]  # fmt: skip
    (tmp_path / "x.tar").write_bytes(tar(files))
    for split, labels in (("train", [0, 1, 2]), ("test", [1, 2])):
        images, _ = images_of(tmp_path / "x.tar", split=split)
        assert (images.classes, images.labels.tolist()) == (("a", "b", "c"), labels)


def test_an_archive_without_folders_is_one_class(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar([(f"{i}.png", png((i, 0, 0))) for i in range(3)]))
    images, colors = images_of(tmp_path / "x.tar")
    assert (images.classes, colors) == (("",), [(0, 0, 0), (1, 0, 0), (2, 0, 0)])


def shards(folder, kind="cls", count=3):
    for shard in range(count):
        files = []
        for i in range(2):
            label = (shard + i) % 3
            content = str(label) if kind == "cls" else json.dumps({"label": label})
            files += [
                (f"{i:04d}.{kind}", content.encode()),
                (f"{i:04d}.png", png((shard, i, label))),
            ]
        (folder / f"part-{shard:03d}.tar").write_bytes(tar(files))


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("pattern", ["part-{000..002}.tar", "part-*.tar", "part-00{0,1,2}.tar"])
def test_shards_of_a_webdataset(tmp_path, kind, pattern):
    shards(tmp_path, kind)
    images, colors = images_of(tmp_path / pattern)
    assert images.classes == ("0", "1", "2")
    assert images.labels.tolist() == [0, 1, 1, 2, 2, 0]
    assert colors == [(s, i, (s + i) % 3) for s in range(3) for i in range(2)]
    assert images_of(tmp_path / pattern, classes=["a", "b", "c"])[0].classes == ("a", "b", "c")
    one, _ = images_of(tmp_path / "part-001.tar")
    assert one.labels.tolist() == [1, 2]
    with pytest.raises(ValueError, match="the shards have 3 classes, but 2 names"):
        open_images(tmp_path / pattern, 8, classes=["a", "b"])


def test_patterns_name_existing_archives(tmp_path):
    shards(tmp_path)
    (tmp_path / "odd{1..2}.tar").write_bytes(b"")
    assert expand_pattern(tmp_path / "odd{1..2}.tar") == [tmp_path / "odd{1..2}.tar"]
    for pattern, kind, message in (
        ("part-{000..003}.tar", FileNotFoundError, r"there is no archive .*part-003\.tar"),
        ("x-*.tar", FileNotFoundError, "there is no archive"),
        ("part-{5..1}.tar", ValueError, r"must count up .*got 5\.\.1"),
        ("part-{0..9999999}.tar", ValueError, "at most 100000"),
        ("{0..999}{0..999}.tar", ValueError, "must name at most 100000"),
    ):
        with pytest.raises(kind, match=message):
            expand_pattern(tmp_path / pattern)


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = ("a/0.png", png((1, 2, 3)))
BROKEN = {
    "no label": ([("0.png", png((1, 1, 1))), ("1.png", png((1, 1, 1))), ("1.cls", b"0")],
                 r"x\.tar/0\.png has no label \(\.cls or \.json beside it\)"),
    "bad label": ([("0.png", png((1, 1, 1))), ("0.cls", b"cat")], "must have a label from 0 to"),
    "huge label": ([("0.png", png((1, 1, 1))), ("0.cls", b"9" * 99)], "must have a label from 0"),
    "bad JSON": ([("0.png", png((1, 1, 1))), ("0.json", b"{")], r"x\.tar/0\.json is damaged"),
    "no key": ([("0.png", png((1, 1, 1))), ("0.json", b"{}")], "label from 0 to 999999, got None"),
    "two images": ([("0.png", png((1, 1, 1))), ("0.jpg", b"x"), ("0.cls", b"1")],
                   "is a second image of one sample"),
    "absolute": ([("/etc/0.png", png((1, 1, 1)))], "unsafe name: '/etc/0.png'"),
    "outside": ([("a/../../0.png", png((1, 1, 1)))], "unsafe name: 'a/../../0.png'"),
    "link": ([GOOD, (member("a/1.png", tarfile.SYMTYPE, "/etc/passwd"), b"")],
             r"x\.tar/a/1\.png is not an image file but a link"),
    "pipe": ([GOOD, (member("a/1.png", tarfile.FIFOTYPE), b"")], r"a/1\.png is not an image file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_must_not_be_used_is_refused_by_name_or_skipped(tmp_path, name, caplog):
    files, message = BROKEN[name]
    path = tmp_path / "x.tar"
    path.write_bytes(tar(files))
    with pytest.raises(ImageError, match=message) as caught:
        open_images(path, 8)
    assert "\n" not in str(caught.value)
    intact = {"no label": 1, "link": 1, "pipe": 1}.get(name, 0)
    if intact:
        assert len(images_of(path, on_error="skip")[1]) == intact
        assert "skipped: 1 that cannot be read" in caplog.text
    else:
        with pytest.raises(FileNotFoundError, match="has no images"):
            open_images(path, 8, on_error="skip")


def test_damaged_and_truncated_archives_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    files = [(f"a/{i}.png", png((i, i, i))) for i in range(3)]
    whole, second = tar(files), len(tar(files[:1], end=False))
    damaged = bytearray(whole)
    damaged[second + 10] ^= 1  # its header's checksum does not fit
    for content, message in (
        (whole[: second + 600], r"x\.tar is not a complete tar archive: unexpected end of data"),
        (whole[: second + 100], r"x\.tar is damaged or truncated at byte"),
        (tar(files, end=False), r"x\.tar is damaged or truncated at byte"),
        (bytes(damaged), rf"x\.tar is damaged or truncated at byte {second}"),
        (b"", "is not a complete tar archive: empty file"),
        (b"no archive" * 99, "is not a complete tar archive"),
        (b"\x1f\x8b" + bytes(99), "is compressed: decompress it"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=message) as caught:
            open_images(path, 8)
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ImageError, match=r"pipe\.tar is not a tar archive but no regular file"):
        open_images(tmp_path / "pipe.tar", 8)
    path.write_bytes(whole[: second + 600])
    assert images_of(path, on_error="skip")[1][0] == (0, 0, 0)


def test_damaged_images_and_archives_that_shrink_are_refused_when_drawn(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar([("a/0.png", png((1, 1, 1))), ("a/1.png", b"no image")]))
    images = open_images(path, 8)
    with pytest.raises(ImageError, match=r"x\.tar/a/1\.png is not a complete image"):
        images.take(np.arange(2))
    with pytest.raises(ImageError, match=r"x\.tar/a/1\.png is not a complete image"):
        open_images(path, 8, on_error="check")
    assert len(open_images(path, 8, on_error="skip")) == 1
    os.truncate(path, 560)
    with pytest.raises(ImageError, match=r"x\.tar is truncated"):
        images.take(np.arange(1))


def test_threads_and_forked_processes_read_at_once(tmp_path):
    images = open_images(imagenet(tmp_path / "x.tar"), 8)
    expected = images.take(np.arange(6))
    order, wrong = np.random.default_rng(0).integers(0, 6, 100), []

    def read():
        wrong.append(not torch.equal(images.take(order), expected[order]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the threads of the parent's PyTorch are not here
        os._exit(0 if torch.equal(images.take(order), expected[order]) else 1)
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert wrong == [False] * 4


def test_identity_is_that_of_names_sizes_and_labels(tmp_path):
    found = open_images(imagenet(tmp_path / "x.tar"), 8).identity()
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "x.tar").rename(tmp_path / "moved" / "x.tar")
    assert open_images(moved, 8).identity() == found
    assert open_images(moved, 8, classes=["n02", "n01"]).identity() != found


def test_tokenize_reads_archives(tmp_path, capsys):
    imagenet(tmp_path / "train.tar")
    torch.save({"state_dict": tiny_model().vae.state_dict()}, tmp_path / "ae.pt")
    command = ["tokenize", str(tmp_path / "train.tar"), "--autoencoder", str(tmp_path / "ae.pt")]
    assert main([*command, "--size", "8", "--quiet", "--out", str(tmp_path / "codes")]) == 0
    assert "6 images of 16 codes" in capsys.readouterr().out
    data = PackedDataset(tmp_path / "codes")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.metadata["classes"] == list(CLASSES)
