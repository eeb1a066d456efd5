"""Metrics of samples: torch-fidelity's numbers, any number of processes, and what is refused."""

import json
import os
import socket
import sys
import threading
import types

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.distributed import World
from bitdance.evaluation import compare as module
from bitdance.evaluation.classifier import Classifier, save_classifier
from bitdance.evaluation.compare import compare
from bitdance.evaluation.distances import (
    InceptionScore,
    Moments,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)
from bitdance.evaluation.features import load_extractor
from bitdance.evaluation.image_sources import ImageSource, open_source, read_statistics
from bitdance.io.files import CheckpointError
from bitdance.io.npz import NpzError, write_images
from tests.forked import READY
from tests.model.helpers.tiny import tiny_pipeline

WORLD = World()


def features(seed, count, size):
    draws = np.random.default_rng(seed)
    mix = draws.standard_normal((size, size)) / size**0.5
    return torch.from_numpy(draws.standard_normal((count, size)) @ mix + 0.3 * seed)


# What the functions of torch-fidelity 0.4.0 return for features(1, n, size), features(2, m, size):
# FID; mean and deviation of KID with kid_subset_size = m; precision and recall; mean and deviation
# of the inception score.
FIDELITY = {
    (16, 230, 210): (
        9.367593888434474, (0.9449505614083007, 0.014812187821543846),
        (0.41304346919059753, 0.15238095819950104), (1.3942529925661797, 0.051050213929235415),
    ),
    (64, 300, 280): (
        41.33476588314237, (0.6443861457150851, 0.0052778198316724145),
        (0.14666666090488434, 0.1428571492433548), (1.555207042288675, 0.03813870823033487),
    ),
}  # fmt: skip


@pytest.mark.parametrize("sizes", FIDELITY)
def test_the_numbers_are_those_of_torch_fidelity(sizes):
    size, n, m = sizes
    a, b = features(1, n, size), features(2, m, size)
    score = InceptionScore(n, size)
    for items in torch.randperm(n).split(100):
        score.add(items, a[items])
    frechet, *others = FIDELITY[sizes]
    found = kernel_distance(a, b, WORLD), precision_and_recall(a, b, WORLD), score.score(WORLD)
    assert frechet_distance(a, b) == pytest.approx(frechet, rel=1e-6)
    for ours, theirs in zip(found, others, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("rank", [4, 16])
def test_an_identical_set_has_no_distance(rank):
    """Also where the covariance is singular."""
    x = features(1, 300, 16)
    x[:, rank:] = x[:, :1]
    assert frechet_distance(x, x.clone()) == pytest.approx(0, abs=1e-9)
    assert precision_and_recall(x.float(), x.float(), WORLD) == (1, 1)
    assert kernel_distance(x[:200], x[:200], WORLD)[0] < 0  # unbiased, of equal subsets


def test_moments_by_blocks_are_those_of_all():
    x = 1e3 + features(3, 700, 8)  # far from zero, where sums of squares would lose digits
    moments = Moments(8)
    for block in x.split([1, 0, 300, 399]):
        moments.add(block)
    assert moments.count == 700
    assert np.allclose(moments.mean, x.numpy().mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(x.numpy().T), rtol=1e-10)


def _network(weights, device):
    """Features of images that need no training: means of a grid of cells, and two logits."""

    def extract(images):
        x = torch.nn.functional.adaptive_avg_pool2d(images.float().to(device), 2).flatten(1) / 255
        return x, torch.stack([x.sum(1), -x.sum(1)], 1)

    return extract


def _pictures(seed, count, side=8):
    draws = np.random.default_rng(seed)
    return draws.integers(0, 200 + 20 * seed, (count, side, side, 3), np.uint8)


def _npz(path, pixels):
    write_images(path, [pixels], np.zeros(len(pixels)), pixels.shape[1:3])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    _npz(folder / "a.npz", _pictures(0, 230))
    _npz(folder / "b.npz", _pictures(1, 270))
    _npz(folder / "few.npz", _pictures(1, 11))
    _npz(folder / "large.npz", _pictures(1, 30, 16))
    for name, count in (("real", 270), ("test", 0)):
        (folder / "files" / name).mkdir(parents=True)
        for i, pixels in enumerate(_pictures(1, count)):
            Image.fromarray(pixels).save(folder / "files" / name / f"{i:03d}.png")
    (folder / "empty").mkdir()
    (folder / "other.pt").write_bytes(b"nothing")
    return folder


def _compare(folder, **settings):
    given = {"batch_size": 7, "progress": False, **settings}
    return compare(
        open_source(folder / "a.npz"), open_source(folder / "b.npz"), _network(None, "cpu"), **given
    )


def test_images_against_their_features(folder):
    found = _compare(folder)
    a, b = (
        _network(None, "cpu")(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        for pixels in (_pictures(0, 230), _pictures(1, 270))
    )
    assert (found.samples, found.reference) == (230, 270)
    assert found.frechet == pytest.approx(frechet_distance(a[0], b[0]), rel=1e-9)
    assert (found.precision, found.recall) == precision_and_recall(a[0], b[0], WORLD)
    assert (found.kernel, found.kernel_std) == kernel_distance(a[0], b[0], WORLD)
    score = InceptionScore(230, 2)
    score.add(torch.arange(230), a[1])
    assert found.inception_score == pytest.approx(score.score(WORLD)[0], rel=1e-12)
    again = _compare(folder, batch_size=1000)
    assert again.frechet == pytest.approx(found.frechet, rel=1e-9)
    assert (again.precision, again.recall) == (found.precision, found.recall)


def test_a_part_of_the_features_serves_for_neighbors(folder, monkeypatch):
    whole = _compare(folder)
    monkeypatch.setattr(module, "_KEPT", 60)
    part = _compare(folder)
    assert part.frechet == whole.frechet
    kept = [torch.linspace(0, n - 1, 60).round().long() for n in (230, 270)]
    chosen = [
        _network(None, "cpu")(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0][items]
        for pixels, items in zip((_pictures(0, 230), _pictures(1, 270)), kept, strict=True)
    ]
    assert (part.precision, part.recall) == precision_and_recall(*chosen, WORLD)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_statistics_take_the_place_of_images(folder, tmp_path, save):
    moments = Moments.of(_network(None, "cpu")(open_source(folder / "b.npz").read(0, 270))[0])
    known = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    save(tmp_path / "known.npz", **known)
    found = compare(
        open_source(folder / "a.npz"), None, _network(None, "cpu"), progress=False,
        statistics=read_statistics(tmp_path / "known.npz"),
    )  # fmt: skip
    assert found.frechet == pytest.approx(_compare(folder).frechet, rel=1e-9)
    assert (found.reference, found.precision, found.kernel) == (0, None, None)
    assert "reference images" not in found.table()
    save(tmp_path / "both.npz", arr_0=_pictures(0, 9), **known)  # as ADM's reference files
    assert main([*_given(folder, tmp_path / "both.npz"), "--out", str(tmp_path)]) == 0
    both = json.loads((tmp_path / "metrics.json").read_text())
    assert both["reference"] == 9
    assert both["frechet"] == pytest.approx(found.frechet, rel=1e-9)
    assert read_statistics(folder / "b.npz") is None
    assert read_statistics(folder) is None
    save(tmp_path / "wrong.npz", mu=known["mu"][:3], sigma=known["sigma"])
    with pytest.raises(NpzError, match="must have mu"):
        read_statistics(tmp_path / "wrong.npz")


def _given(folder, reference):
    features = ["--features", f"{__name__}:_network", "--quiet", "--batch-size", "7"]
    return ["metrics", str(folder / "a.npz"), "--reference", str(reference), *features]


def _rank(rank, port, folder, out):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.exit(main([*_given(folder, folder / "b.npz"), "--out", str(out)]))


def test_two_processes_find_the_same(folder, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [READY.Process(target=_rank, args=(i, port, folder, tmp_path)) for i in range(2)]
    for process in processes:
        process.start()
    alone = _compare(folder)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    together = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("frechet", "kernel", "kernel_std", "inception_score", "inception_score_std"):
        assert together[name] == pytest.approx(getattr(alone, name), rel=1e-9)
    assert (together["precision"], together["recall"]) == (alone.precision, alone.recall)


def test_every_kind_of_images(folder, tmp_path):
    alone = _compare(folder)
    for reference in (folder / "files" / "real", folder / "files"):
        assert main([*_given(folder, reference), "--out", str(tmp_path)]) == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["frechet"] == alone.frechet
    assert (tmp_path / "metrics.md").read_text() == alone.table().replace(
        "(features,", f"({__name__}:_network,"
    )


def test_samples_of_a_model(folder, tmp_path, capsys):
    """Images, packed codes, and the classifier of an evaluation."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]
    torch.manual_seed(0)
    classifier = Classifier(5, dtype=torch.float32, device="cpu").eval()
    save_classifier(classifier, tmp_path / "judge.safetensors")
    given = ["--reference", str(folder / "b.npz"), "--features", "classifier", "--quiet"]
    given += ["--weights", str(tmp_path / "judge.safetensors")]
    tables = []
    for content in ("npz", "packed"):
        out = str(tmp_path / content)
        sample = ["sample", *model, "--num-per-class", "26", "--num-inference-steps", "1"]
        assert main([*sample, "--quiet", "--format", content, "--out", out]) == 0
        capsys.readouterr()
        assert main(["metrics", out, *given, *(model if content == "packed" else [])]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "| Fréchet distance (classifier, 128 features) |" in tables[0]
    assert main(["metrics", str(tmp_path / "packed"), *given]) == 1
    assert "--model must be given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("samples", "reference", "more", "message"),
    [
        ("few.npz", "b.npz", ["--features", "classifier"], "weights must be a file for 'class"),
        ("few.npz", "b.npz", [], "few.npz must have at least as many images as there are features"),
        ("a.npz", "few.npz", [], "few.npz must have at least as many images as there are features"),
        ("a.npz", "large.npz", [], "must have one size, got (8, 8) and (16, 16)"),
        ("nowhere", "b.npz", [], "no such file or folder"),
        ("a.npz", "nowhere", [], "no such file or folder"),
        ("a.npz", "other.pt", [], "is not a complete .npz file"),
        ("empty", "b.npz", [], "size must be given, got none"),
        ("a.npz", "empty", [], "no images"),
        ("a.npz", "b.npz", ["--features", "vgg"], "must be inception, classifier or module:fun"),
        ("a.npz", "b.npz", ["--features", "nothing:here"], "nothing:here cannot be imported"),
        ("a.npz", "b.npz", ["--out", "other.pt"], "exists and is not a folder"),
        ("a.npz", "b.npz", ["--features", "inception", "--weights", "no.pth"], "no such file"),
        ("a.npz", "b.npz", ["--features", "classifier", "--weights", "other.pt"], "other.pt"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(
    folder, capsys, monkeypatch, samples, reference, more, message
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(f"{__name__}.SIZE", 12)
    given = ["metrics", samples, "--reference", reference, "--quiet"]
    if "--features" not in more:
        given += ["--features", f"{__name__}:_many"]
    assert main([*given, *more]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("bitdance metrics: error: ")
    assert message in printed.err
    assert printed.out == ""


SIZE = 12


def _many(weights, device):
    return lambda images: (images.float().flatten(1)[:, :SIZE], None)


def test_the_inception_of_torch_fidelity(tmp_path, monkeypatch):
    """Its interface, by a stand-in; its weights come from the file alone."""
    seen = {}

    class Network(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            seen.update(name=name, layers=features_list)
            self.fc = torch.nn.Linear(3, 2)
            self.load_state_dict(torch.load(feature_extractor_weights_path))

        def forward(self, x):
            assert x.dtype == torch.uint8
            y = self.fc(x.float().mean((2, 3)))
            return y, 2 * y

    package = types.ModuleType("torch_fidelity")
    network = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    network.FeatureExtractorInceptionV3 = Network
    for made in (package, network):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    layer = torch.nn.Linear(3, 2)
    torch.save({f"fc.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "weights.pth")
    extract = load_extractor("inception", tmp_path / "weights.pth")
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    x, logits = extract(images)
    assert torch.equal(x, layer(images.float().mean((2, 3))))
    assert torch.equal(logits, 2 * x)
    assert not x.requires_grad
    assert seen == {"name": "inception-v3-compat", "layers": ["2048", "logits_unbiased"]}
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="has no weights of torch-fidelity's InceptionV3"):
        load_extractor("inception", tmp_path / "other.pth")
    torch.save(load_extractor, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match=r"code\.pth"):
        load_extractor("inception", tmp_path / "code.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, network.__name__)
    with pytest.raises(ImportError, match=r"pip install 'bitdance\[eval\]'"):
        load_extractor("inception", tmp_path / "weights.pth")


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_source_reads_each_image_once(prefetch):
    """Reading is by batches, beside the features unless it computes itself."""
    asked, beside = [], set()

    def read(start, stop):
        asked.append((start, stop))
        beside.add(threading.current_thread() is not threading.main_thread())
        return torch.zeros(stop - start, 3, 8, 8, dtype=torch.uint8)

    source = ImageSource("x", 20, (8, 8), read, prefetch)
    compare(source, source, _network(None, "cpu"), batch_size=8, progress=False)
    assert asked == 2 * [(0, 8), (8, 16), (16, 20)]
    assert beside == {prefetch}
