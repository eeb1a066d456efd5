"""Sampling: guidance, noise, the cache, and arguments that make no sense."""

import copy

import pytest
import torch

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance_kernels import CpuGraph, noise, noise_keys
from tests.model.helpers.tiny import tiny_model, tiny_sampler

LABELS = torch.tensor([1, 3])


def _sample(model, labels=LABELS, **changes):
    """Tokens and the results of all AR steps."""
    results = []
    arguments = {
        "num_inference_steps": 2,
        "seeds": list(range(len(labels))),
        "on_step": results.append,
    }
    sampler = (
        model if isinstance(model, ClassConditionalSampler) else ClassConditionalSampler(model)
    )
    return sampler.sample(labels, **{**arguments, **changes}), results


@pytest.mark.parametrize(
    ("P", "patch_size", "mode"),
    [(1, 1, "patch"), (4, 1, "patch"), (64, 1, "patch"), (4, 2, "patch"), (1, 2, "patch"),
     (2, 2, "standard"), (8, 1, "standard")],
)  # fmt: skip
def test_decoding_steps_equal_one_pass(P, patch_size, mode):
    """What the cached steps see is what training sees: hidden states agree position by position."""
    size = {"parallel_num": P, "patch_size": patch_size, "parallel_mode": mode, "resolution": 16}
    model = tiny_model(**size).double()
    tokens, results = _sample(model)
    assert tokens.shape == (2, model.config.tokens, model.config.token_bits)
    assert len(results) == model.config.ar_steps
    _, cond = model.conditions(tokens, LABELS)
    decoded = torch.cat([result.hidden[:, -P:] for result in results], dim=1)
    decoded += model.pos_for_diff.weight
    once = cond[: cond.shape[0] // model.config.diff_batch_mul].reshape(decoded.shape)
    torch.testing.assert_close(decoded, once)


def test_an_image_does_not_depend_on_its_batch():
    sampler = tiny_sampler()
    labels = torch.tensor([0, 4, 2, 2])
    seeds, ids = [7, 7, 9, 7], [0, 1, 0, 3]
    together = sampler.sample(
        labels, num_inference_steps=3, guidance_scale=2.0, seeds=seeds, sample_ids=ids
    )
    for i in (3, 1, 0, 2):
        alone = sampler.sample(
            labels[i : i + 1],
            num_inference_steps=3,
            guidance_scale=2.0,
            seeds=[seeds[i]],
            sample_ids=[ids[i]],
        )
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[2], together[3])


def test_guidance_schedules():
    linear = [guidance_at(i, 4, 3.0, "linear") for i in range(4)]
    assert linear == [1.0, 1.5, 2.0, 2.5]
    assert [guidance_at(i, 4, 3.0, "constant") for i in range(4)] == [3.0] * 4
    with pytest.raises(ValueError, match="must be 'linear' or 'constant', got 'cosine'"):
        guidance_at(0, 4, 3.0, "cosine")


def test_the_linear_schedule_begins_without_guidance():
    """At step 0 both halves draw and keep tokens of their own; later they share them."""
    _, guided = _sample(tiny_model(), guidance_scale=3.0)
    _, plain = _sample(tiny_model(), guidance_scale=1.0)
    assert torch.equal(guided[0].tokens[:2], plain[0].tokens)
    assert not torch.equal(guided[0].tokens[:2], guided[0].tokens[2:])
    assert [result.guidance_scale for result in guided] == [1.0, 1.5, 2.0, 2.5]
    for result in guided[1:]:
        assert torch.equal(result.tokens[:2], result.tokens[2:])
    # Each half has its own past, so the same label and noise would not make them equal again.
    assert not torch.equal(guided[1].hidden[:2], guided[1].hidden[2:])


def test_constant_guidance_shares_every_token():
    _, results = _sample(tiny_model(), guidance_scale=3.0, guidance_schedule="constant")
    assert [result.guidance_scale for result in results] == [3.0] * 4
    for result in results:
        assert torch.equal(result.tokens[:2], result.tokens[2:])
        assert torch.equal(result.packed[:2], result.packed[2:])


@pytest.mark.parametrize("cfg", [-1.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_without_guidance_no_unconditional_rows_are_computed(cfg, schedule):
    plain, _ = _sample(tiny_model())
    tokens, results = _sample(tiny_model(), guidance_scale=cfg, guidance_schedule=schedule)
    assert {len(result.tokens) for result in results} == {2}
    assert torch.equal(tokens, plain)


def test_seeds_stand_for_the_noise_of_their_keys():
    """Stream 0 for both halves, and stream 1 for unconditional rows that draw their own."""
    model, seeds, ids = tiny_model(), [3, 2**64 - 1], [0, 5]
    steps, rounds, bits = 2, model.config.ar_steps, model.config.token_bits
    explicit = []
    for i in range(rounds):
        streams = (0, 1) if i == 0 else (0,)
        keys = torch.cat([noise_keys(seeds, ids, ar_step=i, stream=s) for s in streams])
        draws = [noise(keys, step, 4 * bits).view(-1, 4, bits) for step in range(steps + 1)]
        explicit.append(draws)
    wanted, _ = _sample(model, seeds=None, noise=explicit, guidance_scale=2.0)
    tokens, _ = _sample(model, seeds=seeds, sample_ids=ids, guidance_scale=2.0)
    assert torch.equal(tokens, wanted)


def test_labels_may_be_int32_and_batches_empty():
    model = tiny_model()
    assert torch.equal(_sample(model, LABELS.int())[0], _sample(model)[0])
    assert _sample(model, LABELS[:0], guidance_scale=2.0)[0].shape == (0, 16, 8)


def test_tokens_need_not_fill_bytes():
    autoencoder = AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=5, num_codebooks=1
    )  # fmt: skip
    model = tiny_model(latent_dim=5, autoencoder=autoencoder)
    tokens, results = _sample(model, guidance_scale=2.0)
    assert tokens.shape == (2, 16, 5)
    assert tokens.abs().eq(1).all()
    assert results[0].packed.shape == (4, 4, 1)
    assert not any((result.packed >> 5).any() for result in results), "bits behind the last"
    model.train()
    assert model(tokens, LABELS).isfinite()


def test_the_cache_is_reused():
    sampler = tiny_sampler()
    first, _ = _sample(sampler)
    cache = sampler.workspaces.idle[0].cache
    again, _ = _sample(sampler)
    alone, _ = _sample(sampler, LABELS[:1])
    assert sampler.workspaces.idle[0].cache is cache
    assert torch.equal(first, again)
    assert torch.equal(first[:1], alone)
    _sample(sampler, guidance_scale=2.0)
    assert sampler.workspaces.idle[0].cache is not cache


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable()))
def test_replayed_steps_follow_labels_seeds_weights_and_threads(monkeypatch):
    sampler, threads, replays = tiny_sampler(), torch.get_num_threads(), []
    model = sampler.model
    replay = CpuGraph.replay
    monkeypatch.setattr(graphs, "CALLS_BEFORE_CAPTURE", 0)
    monkeypatch.setattr(CpuGraph, "replay", lambda self: (replays.append(self), replay(self)))

    def check(**changes):
        new = copy.deepcopy(sampler)  # which has captured nothing
        expected, steps = _sample(new, guidance_scale=2.0, **changes)
        tokens, replayed = _sample(sampler, guidance_scale=2.0, **changes)
        assert torch.equal(tokens, expected)
        for a, b in zip(steps, replayed, strict=True):
            torch.testing.assert_close(a.hidden, b.hidden)
            torch.testing.assert_close(a.prediction, b.prediction)

    _sample(sampler, guidance_scale=2.0)
    replays.clear()
    try:
        check(seeds=[8, 9], labels=torch.tensor([0, 2]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        check()
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        check()
    finally:
        torch.set_num_threads(threads)
    # All steps of the transformer but the first, which looks at its ranges, and all of the head's.
    assert len(replays) >= 2 * model.config.ar_steps


def test_low_precision_models_sample():
    model = tiny_model().to(torch.bfloat16)
    sampler = ClassConditionalSampler(model)
    tokens, results = _sample(sampler, guidance_scale=2.0)
    assert tokens.abs().eq(1).all()
    assert results[0].hidden.dtype == torch.bfloat16
    assert sampler.workspaces.idle[0].cache.layers[0][0].dtype == torch.bfloat16
    assert model.decode(tokens).isfinite().all()


def test_sampling_under_autocast():
    """Products in bfloat16, the residual stream and the sampler's state in float32."""
    sampler = tiny_sampler()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, results = _sample(sampler, guidance_scale=2.0)
    assert tokens.abs().eq(1).all()
    assert sampler.workspaces.idle[0].cache.layers[0][0].dtype == torch.bfloat16
    assert {result.hidden.dtype for result in results} == {torch.float32}
    assert {result.prediction.dtype for result in results} == {torch.float32}


def test_runs_inside_and_outside_of_inference_mode_mix():
    model = tiny_model()
    sampler = ClassConditionalSampler(model)
    with torch.inference_mode():
        inside, _ = _sample(sampler)
    outside, _ = _sample(sampler)
    assert torch.equal(inside, outside)
    model.train()
    model(outside, LABELS).backward()
    assert model.proj_in.w1.weight.grad.isfinite().all()


def test_training_mode_does_not_change_images():
    model = tiny_model(perturb_rate=1.0, class_dropout_prob=1.0)
    wanted, _ = _sample(model)
    model.train()
    assert torch.equal(_sample(model)[0], wanted)


@pytest.mark.parametrize("P", [1, 4])
def test_everything_follows_the_model_to_its_device(P, monkeypatch):
    """The meta device stands in for a GPU: tensors left behind do not fit, and nothing can be read.

    So the host never waits for a result while it samples or trains.
    """
    monkeypatch.setattr(BitDanceModel, "check_labels", lambda *_, **__: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # knows no meta device
    model = tiny_model(parallel_num=P).to("meta")
    tokens, results = _sample(model, guidance_scale=2.0)
    assert tokens.shape == (2, 16, 8)
    assert {tokens.device.type, *(result.packed.device.type for result in results)} == {"meta"}
    assert model.decode(tokens).device.type == "meta"
    assert model.encode(torch.zeros(2, 3, 8, 8, device="meta")).device.type == "meta"
    model.train()
    model(tokens, LABELS.to("meta")).backward()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([5]), r"labels must be 0 to 4, got \[5\]"),
        (torch.tensor([-1]), r"labels must be 0 to 4, got \[-1\]"),
        (torch.tensor(1), r"labels must be int64 \[B\], got torch.int64 \[\]"),
        (torch.tensor([[1]]), r"labels must be int64 \[B\], got torch.int64 \[1, 1\]"),
        (torch.tensor([1.0]), r"labels must be int64 \[B\], got torch.float32 \[1\]"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_sampler().sample(labels, seeds=[0])


NOISE = [[torch.zeros(2, 4, 8)] * 3] * 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_inference_steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"num_inference_steps": 1.5}, TypeError, "steps must be int, got float"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be finite, got nan"),
        ({"guidance_scale": float("inf")}, ValueError, "guidance_scale must be finite, got inf"),
        ({"guidance_schedule": "cosine"}, ValueError, "'linear' or 'constant', got 'cosine'"),
        ({"seeds": None}, ValueError, "exactly one of seeds and noise must be given"),
        ({"noise": NOISE}, ValueError, "exactly one of seeds and noise must be given"),
        ({"seeds": [0]}, ValueError, "seeds must be 2, one an image, got 1"),
        ({"sample_ids": [0, 1, 2]}, ValueError, "sample_ids must be 2, one an image, got 3"),
        ({"seeds": [0, 2**64]}, ValueError, r"seeds must be in \[0, 2\^64\)"),
        ({"seeds": [0, 0.5]}, TypeError, "seeds must be int, got float"),
        ({"sample_ids": [0, -1]}, ValueError, r"sample_ids must be in \[0, 2\^32\), got -1"),
        ({"seeds": None, "noise": NOISE[1:]}, ValueError, "noise must be of 4 AR steps, got 3"),
        (
            {"seeds": None, "noise": NOISE, "num_inference_steps": 4},
            ValueError,
            r"noise must be 5 tensors of shape \[2, 4, 8\], got 3",
        ),
        (
            {"seeds": None, "noise": NOISE, "guidance_scale": 2.0},
            ValueError,
            r"noise must be 3 tensors of shape \[4, 4, 8\], got 3 of shape \[2, 4, 8\]",
        ),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        _sample(tiny_model(), **changes)
