"""The quantizer over several processes, and copies of it."""

import copy
import datetime
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.quantizer import BinaryQuantizer
from tests.forked import READY
from tests.model.helpers.tiny import AUTOENCODER

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="this PyTorch has no distributed package"
)


def _features(dtype):
    generator = torch.Generator().manual_seed(1)
    return (0.03 * torch.randn(6, 8, 3, 5, generator=generator)).to(dtype)


def _losses_and_gradient(quantizer, features):
    features = features.clone().requires_grad_()
    losses = quantizer(features, with_losses=True).losses
    (gradient,) = torch.autograd.grad(losses.entropy + losses.commitment, features)
    return [loss.detach() for loss in losses], gradient


def _in_process(rank, folder, results):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    try:
        group = dist.group.WORLD
        for per_group in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                quantizer = BinaryQuantizer(8, 2, per_group=per_group, process_group=group)
                mine = _features(dtype).chunk(2)[rank]
                results[rank, per_group, dtype] = _losses_and_gradient(quantizer, mine)
        autoencoder = BinaryAutoencoder(AUTOENCODER)
        autoencoder.quantizer.process_group = group  # of a model that is already made
        mine = _features(torch.float32).chunk(2)[rank]
        results[rank, "set later"] = _losses_and_gradient(autoencoder.quantizer, mine)
        duplicate = copy.deepcopy(autoencoder)
        results[rank, "a deep copy"] = _losses_and_gradient(duplicate.quantizer, mine)
        assert duplicate.quantizer.process_group is group
        file = io.BytesIO()
        torch.save(autoencoder, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (loaded, pickle.loads(pickle.dumps(autoencoder))):
            assert other.quantizer.process_group is None
            assert other.quantizer.num_codebooks == 1
        assert autoencoder.quantizer.process_group is group
        assert not autoencoder.quantizer.state_dict()
    finally:
        dist.destroy_process_group()


def _average(results, *key):
    (a, grad_a), (b, grad_b) = (results[(rank, *key)] for rank in (0, 1))
    average = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    return a, b, average, torch.cat([grad_a, grad_b]) / 2  # as averaged gradients leave each share


def test_processes_have_the_losses_and_gradient_of_the_whole_batch(tmp_path):
    with READY.Manager() as manager:
        results = manager.dict()
        start_processes(_in_process, (str(tmp_path), results), 2, start_method="forkserver")
        results = dict(results)
    for per_group in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            alone = BinaryQuantizer(8, 2, per_group=per_group)
            expected, gradient = _losses_and_gradient(alone, _features(dtype))
            a, b, average, shared = _average(results, per_group, dtype)
            torch.testing.assert_close(a[1], expected[1])  # the codebook's entropy
            torch.testing.assert_close(b[1], expected[1])
            torch.testing.assert_close(average, expected)
            torch.testing.assert_close(shared, gradient)
            mean = sum(
                alone(part, with_losses=True).losses.codebook_entropy
                for part in _features(dtype).chunk(2)
            )
            assert mean / 2 < expected[1] - 0.01  # what each would have without the others
    expected, gradient = _losses_and_gradient(BinaryQuantizer(8, 1), _features(torch.float32))
    for name in ("set later", "a deep copy"):
        *_, average, shared = _average(results, name)
        torch.testing.assert_close(average, expected)
        torch.testing.assert_close(shared, gradient)


def test_what_is_no_process_group_is_refused():
    with pytest.raises(
        TypeError, match=r"^BinaryQuantizer: process_group must be a ProcessGroup, got str$"
    ):
        BinaryQuantizer(8, process_group="world")


def test_without_processes_copies_are_like_the_original():
    quantizer = BinaryQuantizer(8, 2, temperature=0.5, per_group=True).eval()
    expected = _losses_and_gradient(quantizer, _features(torch.float32))
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert not other.training
        assert other.process_group is None
        torch.testing.assert_close(_losses_and_gradient(other, _features(torch.float32)), expected)
