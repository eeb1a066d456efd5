"""Many images in one file: by several processes, in any batches, after any interruption."""

import dataclasses
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
from collections import namedtuple

import numpy as np
import pytest
import torch

from bitdance.cli.main import main
from bitdance.data.packed_dataset import PackedDataset
from bitdance.distributed import World
from bitdance.evaluation import sample
from bitdance.evaluation.sample import decode_codes, sample_classes
from bitdance.evaluation.sample_settings import fingerprint
from bitdance.io.folder_lock import FolderLock
from tests.forked import READY
from tests.model.helpers.tiny import AUTOENCODER, tiny_pipeline

LABELS = [i % 5 for i in range(22)]
draw = functools.partial(
    sample_classes, seed=3, num_inference_steps=2, batch_size=2, progress=False
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sample, "_BLOCK", 4)


@pytest.fixture(scope="module")
def expected():
    """The images of a call of the pipeline."""
    images = tiny_pipeline()(
        LABELS, seed=3, num_inference_steps=2, batch_size=7, output_type="uint8"
    ).images
    return images.permute(0, 2, 3, 1).numpy()


def _images(folder):
    with np.load(folder / "samples.npz") as content:
        assert np.array_equal(content["arr_1"], LABELS)
        return content["arr_0"]


def _digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_images_are_those_of_the_pipeline_in_any_batches(tmp_path, expected):
    for batch in (1, 3, 64):
        result = draw(tiny_pipeline(), LABELS, tmp_path / str(batch), batch_size=batch)
        assert result == sample.SampleResult(tmp_path / str(batch) / "samples.npz", 22)
        assert np.array_equal(_images(tmp_path / str(batch)), expected)
        names = sorted(path.name for path in (tmp_path / str(batch)).iterdir())
        assert names == ["samples.json", "samples.npz"]
    assert draw(tiny_pipeline(), LABELS, tmp_path / "3").generated == 0


def test_the_progress_bar_is_the_callers_again(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(desc="mine")
    draw(pipeline, LABELS[:2], tmp_path / "samples")
    assert pipeline._progress_bar_config == {"desc": "mine"}


class _StopError(Exception):
    pass


def _stop_after(pipeline, calls, act):
    """A pipeline of which a later call does something else."""
    original, left = type(pipeline).__call__, [calls]

    class Stopping(type(pipeline)):
        def __call__(self, *args, **kwargs):
            if not left[0]:
                act()
            left[0] -= 1
            return original(self, *args, **kwargs)

    pipeline.__class__ = Stopping
    return pipeline


def _raise():
    raise _StopError


def test_an_interrupted_call_goes_on_where_it_was(tmp_path, expected):
    for blocks in (0, 2, 1):
        with pytest.raises(_StopError):
            draw(_stop_after(tiny_pipeline(), blocks, _raise), LABELS, tmp_path)
    assert len(list((tmp_path / "blocks").iterdir())) == 3
    assert draw(tiny_pipeline(), LABELS, tmp_path, batch_size=5).generated == 22 - 12
    assert np.array_equal(_images(tmp_path), expected)


def _killed(folder, blocks):
    torch.set_num_threads(1)
    sample._BLOCK = 4
    draw(_stop_after(tiny_pipeline(), blocks, lambda: os.kill(os.getpid(), 9)), LABELS, folder)


def test_a_killed_process_loses_nothing_that_was_written(tmp_path, expected):
    process = READY.Process(target=_killed, args=(tmp_path, 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    blocks = _digests(tmp_path / "blocks")
    assert len(blocks) == 3
    (tmp_path / "blocks/.00000012.safetensors.abcdefgh.bitdance.tmp").mkdir()  # as a kill leaves
    result = draw(tiny_pipeline(), LABELS, tmp_path)
    assert result.generated == 22 - 12
    assert np.array_equal(_images(tmp_path), expected)
    assert not (tmp_path / "blocks").exists()


def test_a_full_disk_ends_the_call_and_loses_nothing(tmp_path, expected):
    """Of one whose files cannot be as long as a block, and as the result."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, blocks in ((900, 0), (1500, 6)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=r"(?i)cannot be written|file too large"):
                draw(tiny_pipeline(), LABELS, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(list((tmp_path / "blocks").iterdir())) == blocks
        assert not (tmp_path / "samples.npz").exists()
    assert draw(tiny_pipeline(), LABELS, tmp_path).generated == 0
    assert np.array_equal(_images(tmp_path), expected)


def test_blocks_that_a_killed_process_has_left_beside_the_result_are_removed(tmp_path):
    draw(tiny_pipeline(), LABELS, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "00000000.safetensors").write_bytes(b"images")
    assert draw(tiny_pipeline(), LABELS, tmp_path).generated == 0
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_damaged_block_is_made_again(tmp_path, expected, caplog):
    with pytest.raises(_StopError):
        draw(_stop_after(tiny_pipeline(), 4, _raise), LABELS, tmp_path)
    files = sorted((tmp_path / "blocks").iterdir())
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files[1].write_bytes(content[: len(content) // 2])
    header = b'{"images":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}'
    files[2].write_bytes(len(header).to_bytes(8, "little") + header + b"0")  # NumPy has no such
    assert draw(tiny_pipeline(), LABELS, tmp_path).generated == 22 - 4
    assert caplog.text.count("is damaged and will be made again") == 3
    assert np.array_equal(_images(tmp_path), expected)


def test_packed_samples_decode_to_the_same_images(tmp_path, expected):
    draw(tiny_pipeline(), LABELS, tmp_path, content="packed")
    data = PackedDataset(tmp_path / "codes")
    assert (len(data), data.tokens, data.channels) == (22, 16, 8)
    assert data.labels.tolist() == LABELS
    assert data.metadata["seed"] == 3
    assert data.metadata["model"] == fingerprint(tiny_pipeline().model)
    for items in (range(22), [21, 4]):
        images = decode_codes(tiny_pipeline(), data, items, batch_size=3)
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected[list(items)])
    size = (tmp_path / "codes/codes-00000.npy").stat().st_size
    assert size <= 22 * 16 + 256  # a byte for eight bits, and the header


def test_packed_samples_of_a_decoder_that_takes_noise(tmp_path):
    noisy = dataclasses.replace(AUTOENCODER, gan_decoder=True, z_channels=4)
    pipeline = tiny_pipeline(autoencoder=noisy, latent_dim=4, patch_size=2)
    for content in ("npz", "packed"):
        draw(pipeline, LABELS, tmp_path / content, content=content)
    data = PackedDataset(tmp_path / "packed/codes")
    images = decode_codes(pipeline, data, range(8, 22)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, _images(tmp_path / "npz")[8:])
    del data.metadata["seed"]
    with pytest.raises(ValueError, match="decode_codes: data must have a seed"):
        decode_codes(pipeline, data, [0])
    with pytest.raises(ValueError, match="data must have 16 codes of 8 bits, got 16 of 4"):
        decode_codes(tiny_pipeline(), data, [0])


def test_other_settings_are_refused_by_name(tmp_path):
    with pytest.raises(_StopError):
        draw(_stop_after(tiny_pipeline(), 1, _raise), LABELS, tmp_path)
    before = _digests(tmp_path)
    for changes, text in (
        ({"seed": 4}, r"seed \(was 3, is 4\)"),
        ({"num_inference_steps": 3, "guidance_scale": 1.5},
         r"num_inference_steps \(was 2, is 3\), guidance_scale \(was 2.0, is 1.5\)"),
        ({"labels": LABELS[:-1]}, r"images \(was 22, is 21\), labels \("),
        ({"labels": LABELS[::-1]}, r"labels \(was '[0-9a-f.]+', is '[0-9a-f.]+'\)"),
        ({"pipeline": tiny_pipeline(1)}, r"model \(was"),
        ({"pipeline": tiny_pipeline().to(torch.bfloat16)}, r"dtype \(was 'float32', is 'bfl"),
        ({"content": "packed"}, r"content \(was 'npz', is 'packed'\)"),
        ({"guidance_schedule": "constant"}, r"guidance_schedule \("),
    ):  # fmt: skip
        given = {"pipeline": tiny_pipeline(), "labels": LABELS, "folder": tmp_path, **changes}
        with pytest.raises(ValueError, match=f"holds samples with other settings: .*{text}"):
            draw(**given)
        assert _digests(tmp_path) == before
    found = json.loads((tmp_path / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps(found | {"seed": 4}))
    with pytest.raises(ValueError, match=r"00000000\.safetensors is a block of samples with other"):
        draw(tiny_pipeline(), LABELS, tmp_path, seed=4)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    pipeline = _stop_after(tiny_pipeline(), 0, lambda: pytest.fail("images were generated"))
    for changes, text in (
        ({"labels": []}, "labels must be at least one class, got none"),
        ({"labels": [0, 5]}, "class must be 0 to 4 or a name, got 5"),
        ({"labels": ["dragon"]}, "got 'dragon'"),
        ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"content": "png"}, "content must be 'npz' or 'packed', got 'png'"),
    ):
        with pytest.raises(ValueError, match=text):
            draw(**{"pipeline": pipeline, "labels": LABELS, "folder": tmp_path / "new", **changes})
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        draw(pipeline, LABELS, tmp_path)
    with pytest.raises(NotADirectoryError):
        draw(pipeline, LABELS, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(22 * 8 * 8 * 3 * 2 - 1))
    with pytest.raises(OSError, match=r"new needs 0\.00 GB for 22 images and has 0\.00 GB"):
        draw(pipeline, LABELS, tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())
    monkeypatch.undo()
    lock = FolderLock(tmp_path / "new")
    with pytest.raises(OSError, match="is in use by another run"):
        draw(pipeline, LABELS, tmp_path / "new")
    lock.release()


def _rank(rank, port, folder, queue):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sample._BLOCK = 4
    with World.from_env() as world:
        pipeline = tiny_pipeline()
        if rank == 1 and not (folder / "samples.json").exists():
            _stop_after(pipeline, 1, _raise)
        try:
            queue.put((rank, draw(pipeline, LABELS, folder, world=world).generated))
        except Exception as error:
            queue.put((rank, f"{type(error).__name__}: {error}"))
            raise


def _two(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = READY.Queue()
    processes = [READY.Process(target=_rank, args=(i, port, folder, queue)) for i in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return results


def test_two_processes_write_the_same_images_and_fail_together(tmp_path, expected):
    failed = _two(tmp_path)
    assert failed[1] == "_StopError: "
    assert failed[0].startswith("WorldError: ")
    assert 1 <= len(list((tmp_path / "blocks").iterdir())) < 6
    done = _two(tmp_path)
    assert done[0] == done[1] > 0
    assert np.array_equal(_images(tmp_path), expected)


def test_the_command(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    given = [
        "sample", "--model", str(tmp_path / "model"), "--num-inference-steps", "2", "--quiet",
        "--batch-size", "4", "--num-per-class", "2", "--seed", "5",
    ]  # fmt: skip
    for classes, out in (([], "all"), (["--class", "bag", "4"], "two")):
        assert main([*given, *classes, "--out", str(tmp_path / out)]) == 0
    assert f"10 images, seed 5: {tmp_path}/all/samples.npz" in capsys.readouterr().out
    with np.load(tmp_path / "all/samples.npz") as content:
        assert content["arr_1"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with np.load(tmp_path / "two/samples.npz") as content:
        assert content["arr_1"].tolist() == [1, 1, 4, 4]
    assert main([*given, "--out", str(tmp_path / "all")]) == 0
    assert "10 of them there before" in capsys.readouterr().out
    assert main([*given, "--out", str(tmp_path / "all"), "--format", "packed"]) == 1
    assert "content (was 'npz', is 'packed')" in capsys.readouterr().err
