"""The images of a folder and their classes; every skipped file is counted."""

import logging
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.data.image_folders import find_images, find_labeled_images
from bitdance.data.images import open_images
from bitdance.io.image_files import ImageError


def picture(path, color=(9, 9, 9), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, format="PNG")


@pytest.fixture
def data(tmp_path):
    """Two classes of two images."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png", (100 * label, 10 * i, 0))
    return tmp_path


def listed(folder, split="train", **options):
    """Names and classes of the images of ``open_images``, in its order."""
    images = open_images(folder, 8, split=split, **options)
    return [
        (path.name, images.classes[k]) for path, k in zip(images._files, images.labels, strict=True)
    ]


CATS_AND_DOGS = [("0.png", "cat"), ("1.png", "cat"), ("0.png", "dog"), ("1.png", "dog")]


def test_hidden_files_and_folders_are_ignored(data, caplog):
    (data / "cat" / "._0.png").write_bytes(b"\0\5\x16\7" + b"\0" * 78)
    (data / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
        picture(data / name / "0.png")
        picture(data / "dog" / name / "0.png")
    (data / ".empty").mkdir()
    assert listed(data) == CATS_AND_DOGS
    assert not caplog.records


def test_folders_without_images_are_not_classes(data, caplog):
    (data / "ant").mkdir()
    (data / "bee" / "deep").mkdir(parents=True)
    (data / "cat" / "scan.png").mkdir()
    (data / "bat").mkdir()
    (data / "bat" / "notes.txt").write_text("to do")
    assert listed(data) == CATS_AND_DOGS
    assert "1 files that are not images (.txt 1)" in caplog.text


def test_other_files_are_counted_and_images_recognized_by_content(data, caplog):
    for name in ("photo", "photo.jpg_large", "b.JPE"):
        picture(data / "cat" / name)
    for name in ("cat/0.txt", "cat/1.txt", "dog/labels.csv", "README", "dog/film.mp4"):
        (data / name).write_text("P")
    picture(data / "sheet.png")
    assert [name for name, kind in listed(data) if kind == "cat"] == [
        "0.png", "1.png", "b.JPE", "photo", "photo.jpg_large"
    ]  # fmt: skip
    assert caplog.messages == [
        f"{data}: 7 images; skipped: 1 images outside of the class folders, 5 files that are not "
        "images (no suffix 1, .csv 1, .mp4 1, .txt 2)"
    ]


@pytest.mark.parametrize("kind", ["pipe", "broken link", "loop", "device"])
def test_what_must_not_be_opened_is_refused_by_name_or_counted(data, caplog, kind):
    path = data / "cat" / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"broken link": "nowhere", "loop": path, "device": "/dev/zero"}[kind])
    for on_error in ("raise", "check"):
        with pytest.raises(ImageError, match=r"cat/x\.png is not an image file"):
            open_images(data, 8, on_error=on_error)
    assert listed(data, on_error="skip") == CATS_AND_DOGS
    assert f"skipped: 1 that cannot be read ({path} is not an image file" in caplog.text


def test_pipes_that_do_not_end_like_images_are_never_opened(data, caplog):
    os.mkfifo(data / "cat" / "pipe")
    assert listed(data) == CATS_AND_DOGS
    assert "(no suffix 1)" in caplog.text


def damage(data):
    whole = (data / "cat" / "0.png").read_bytes()
    (data / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (data / "dog" / "2.png").write_bytes(b"no image")


def test_damaged_images_are_refused_when_drawn_or_before(data):
    damage(data)
    images = open_images(data, 8)
    assert len(images) == 5
    with pytest.raises(ImageError, match=r"cat/0\.png is not a complete image"):
        images.take(np.arange(2))
    with pytest.raises(ImageError, match=r"cat/0\.png is not a complete image: .* \(and 1 more\)"):
        open_images(data, 8, on_error="check")


def test_damaged_images_are_skipped_with_a_count_and_labels_stay_aligned(data, caplog):
    damage(data)
    images = open_images(data, 8, on_error="skip")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 1, 1]
    taken = images.take(np.arange(3))
    assert taken[:, :2, 4, 4].tolist() == [[0, 10], [100, 0], [100, 10]]
    assert "3 images; skipped: 2 that cannot be read (" in caplog.text
    again = open_images(data, 8, on_error="skip")
    assert torch.equal(again.take(np.arange(3)), taken)


def test_a_class_whose_images_are_all_damaged_keeps_its_number(data):
    for path in (data / "cat").iterdir():
        path.write_bytes(b"no image")
    images = open_images(data, 8, on_error="skip")
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [1, 1])
    for path in (data / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(FileNotFoundError, match="has no images"):
        open_images(data, 8, on_error="skip")


@pytest.fixture
def parts(tmp_path):
    for name in ("train/ant", "train/bee", "train/cat", "test/bee", "test/cat"):
        picture(tmp_path / name / "0.png")
    return tmp_path


def test_every_split_has_the_class_numbers_of_the_training_split(parts):
    for split, labels in (("train", [0, 1, 2]), ("test", [1, 2])):
        images = open_images(parts, 8, split=split)
        assert images.classes == ("ant", "bee", "cat")
        assert images.labels.tolist() == labels
    (parts / "test").rename(parts / "val")
    assert open_images(parts, 8, split="test").labels.tolist() == [1, 2]
    (parts / "val" / "empty").mkdir()
    assert open_images(parts, 8, split="test").labels.tolist() == [1, 2]
    picture(parts / "val" / "dog" / "0.png")
    with pytest.raises(ValueError, match="val has classes that the training images lack: 'dog'"):
        open_images(parts, 8, split="test")


def test_the_setting_classes_chooses_and_orders_the_folders(parts, caplog):
    for split, kinds in (("train", ["cat", "ant"]), ("test", ["cat"])):
        images = open_images(parts, 8, split=split, classes=("cat", "ant"))
        assert images.classes == ("cat", "ant")
        assert [images.classes[k] for k in images.labels] == kinds
        assert "1 images outside of the class folders" in caplog.text
        caplog.clear()
    (parts / "train" / "eel").mkdir()
    images = open_images(parts, 8, classes=("eel", "bee"))
    assert (images.classes, images.labels.tolist()) == (("eel", "bee"), [1])
    with pytest.raises(ValueError, match=r"classes must be .*\('ant', 'bee', 'cat'\), got 'emu'"):
        open_images(parts, 8, classes=("ant", "emu"))
    with pytest.raises(ValueError, match="classes must differ"):
        open_images(parts, 8, classes=("ant", "ant"))


def test_splits_are_not_classes(tmp_path):
    picture(tmp_path / "val" / "cat" / "0.png")
    with pytest.raises(FileNotFoundError, match="has 'val', but no 'train'"):
        open_images(tmp_path, 8)
    picture(tmp_path / "cat" / "0.png")
    with pytest.raises(ValueError, match="has 'val' beside 'cat'"):
        open_images(tmp_path, 8)
    with pytest.raises(FileNotFoundError, match="no sub-folder 'test' or 'val', only the split"):
        open_images(tmp_path / "val", 8, split="test")


def test_classes_may_be_named_like_splits(tmp_path):
    for name in ("car", "plane", "train"):
        picture(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="which may be splits or classes"):
        open_images(tmp_path, 8)
    names = ("car", "plane", "train")
    assert open_images(tmp_path, 8, classes=names).labels.tolist() == [0, 1, 2]
    (tmp_path / "train").rename(tmp_path / "test")
    assert open_images(tmp_path, 8).classes == ("car", "plane", "test")


def test_a_flat_folder_is_one_class_without_a_name(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    images = open_images(tmp_path, 8)
    assert (images.classes, images.labels.tolist()) == (("",), [0, 0, 0])
    assert open_images(tmp_path, 8, classes=("cat",)).classes == ("cat",)
    with pytest.raises(ValueError, match="has no class folders, but 2 names"):
        open_images(tmp_path, 8, classes=("cat", "dog"))


def test_all_images_are_used_where_no_class_is_needed(data, caplog):
    picture(data / "sheet.png")
    picture(data / "cat" / "2019" / "may" / "0.png")
    images = open_images(data, 8, labeled=False)
    assert (len(images), images.classes) == (6, ("",))
    assert not caplog.records
    assert [label for _, label in listed(data, labeled=False, classes=("dog",))] == ["dog"] * 2


def test_images_are_sorted_by_name(tmp_path):
    names = ["B.png", "a.png", "a/z.png", "a b.png", "10.png", "9.png", "é.png"]
    for name in reversed(names):
        picture(tmp_path / name)
    seen = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path).files]
    assert seen == ["10.png", "9.png", "B.png", "a/z.png", "a b.png", "a.png", "é.png"]


def test_links_are_followed_and_loops_end(data, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "emu" / "0.png")
    (data / "emu").symlink_to(elsewhere / "emu")
    (data / "cat" / "link.png").symlink_to(data / "cat" / "0.png")
    (data / "cat" / "up").symlink_to(data)
    (data / "emu" / "self").symlink_to(elsewhere / "emu")
    (data / "dog" / "a").mkdir()
    (data / "dog" / "a" / "back").symlink_to(data / "dog")
    assert listed(data) == [*CATS_AND_DOGS[:2], ("link.png", "cat"), *CATS_AND_DOGS[2:],
                            ("0.png", "emu")]  # fmt: skip


def test_class_names_are_equal_in_any_encoding_of_accents(parts):
    picture(parts / "train" / "caf\u00e9" / "0.png")
    picture(parts / "test" / "cafe\u0301" / "0.png")
    images = open_images(parts, 8, split="test")
    assert images.classes == ("ant", "bee", "caf\u00e9", "cat")
    assert images.labels.tolist() == [1, 2, 3]
    assert listed(parts, classes=("cafe\u0301",)) == [("0.png", "caf\u00e9")]
    picture(parts / "train" / "cafe\u0301" / "0.png")
    with pytest.raises(ValueError, match="two folders of the class 'caf\u00e9'"):
        open_images(parts, 8)
    (parts / "train" / "cafe\u0301" / "0.png").unlink()
    picture(parts / "train" / os.fsdecode(b"\xff") / "0.png")
    with pytest.raises(ValueError, match="must have a name in Unicode"):
        open_images(parts, 8)


def test_folders_that_cannot_be_listed_are_an_error(data, monkeypatch):
    listdir = os.listdir

    def refuse(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ImageError, match="dog cannot be listed: Permission denied"):
        open_images(data, 8)


def test_a_strip_of_one_pixel_is_cropped_before_it_is_resized(data, monkeypatch):
    strip = np.zeros((1, 4000, 3), np.uint8)
    strip[:, 1990:2010] = (0, 0, 200)
    Image.fromarray(strip).save(data / "cat" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda i, size, *a: sizes.append(size) or resize(i, size, *a)
    )
    taken = open_images(data, 64).take(np.array([0]))
    assert taken.shape == (1, 3, 64, 64)
    assert sizes == [(3 * 64, 64)]
    assert (taken[0] == torch.tensor([0, 0, 200])[:, None, None]).all()


def test_transparent_images_get_the_background(data):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(data / "cat" / "0.png")
    for background, color in (("white", [255, 255, 255]), ("#102030", [16, 32, 48])):
        taken = open_images(data, 8, background=background).take(np.array([0]))
        assert taken[0, :, 4, 4].tolist() == color


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be one of raise, check, skip, got 'ignore'"),
        ({"split": "val"}, "split must be 'train' or 'test', got 'val'"),
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"size": 8.5}, "size must be an integer of at least 1, got 8.5"),
        ({"background": "glass"}, "background must be an opaque color such as 'white'"),
    ],
)
def test_wrong_arguments(data, options, message):
    with pytest.raises(ValueError, match=message):
        open_images(data, **{"size": 8, **options})


def test_a_forked_process_has_its_own_threads(data):
    """A fork has no threads of its parent: waiting for them would never end."""
    images = open_images(data, 8)
    images.take(np.arange(4))
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        images.take(np.arange(4))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_listing_logs_nothing_by_itself(data, caplog):
    caplog.set_level(logging.DEBUG)
    (data / "cat" / "x.txt").write_text("")
    assert find_labeled_images(data).describe_skipped() == "1 files that are not images (.txt 1)"
    assert not caplog.records
