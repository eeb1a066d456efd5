"""Packed documents: their rows, and the model's losses on them."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitdance.data.packing import DocumentPacker
from bitdance.models import text_to_image
from bitdance.models.packed_batch import PackedBatch, PackedDraws
from bitdance.pipelines.prompts import PROMPT, image_prefix
from bitdance.sampling.text_to_image import TextToImageSampler
from bitdance.training.documents import (
    DocumentMaker,
    ImageSegment,
    TextSegment,
    document_length,
    pack_documents,
)
from bitdance_kernels import dense_mask, use_backend
from bitdance_kernels.testing import compare
from tests.model.helpers.words import SPECIAL, VOCABULARY, Letters
from tests.model.models.test_text_to_image import QWEN, tiny

P, BITS = 4, 8


def model(seed=0, **changes):
    llm = dataclasses.replace(QWEN, vocab_size=VOCABULARY, **changes)
    return tiny(seed, llm=llm)


def codes(grid, seed=0):
    count = grid[0] * grid[1]
    return np.random.default_rng(seed).integers(0, 256, (count, 1), np.uint8)


def documents(text_loss=True):
    maker = DocumentMaker(Letters(), P, text_loss=text_loss)
    return [
        maker.document(maker.caption("a fox"), (4, 2), codes((4, 2)), 0),
        maker.document(None, (2, 2), codes((2, 2), 1), 1),
        maker.document(maker.caption("two red foxes"), (2, 6), codes((2, 6), 2), 2),
    ]


def draws(batch, seed=0, repeats=1):
    torch.manual_seed(seed)
    M = len(batch.loss_tokens)
    rows = repeats * M // P
    flips = (torch.rand(M, BITS), torch.rand(M, BITS))
    return PackedDraws(flips, torch.randn(rows), torch.randn(rows, P, BITS))


def test_the_rows_of_a_document():
    maker, letters = DocumentMaker(Letters(), P, text_loss=True), Letters()
    made = codes((4, 2))
    batch = pack_documents([maker.document(maker.caption("a fox"), (4, 2), made, 0)], P)
    prompt = letters.encode(PROMPT.format("a fox"))
    marks = ["<|vision_start|>", "<|res_4|>", "<|res_2|>", "<|query_1|>", "<|query_2|>"]
    marks = [letters.token_to_id(name) for name in [*marks, "<|query_3|>"]]
    ends = [letters.token_to_id(name) for name in ("<|vision_end|>", "<|im_end|>")]
    first = len(prompt) + 6  # of the image
    assert batch.token_ids.tolist() == [*prompt, *marks, *[0] * 8, *ends]
    assert batch.position_ids.tolist() == list(range(len(batch.token_ids)))
    assert batch.fed_rows.tolist() == list(range(first, first + 8))
    assert batch.loss_rows.tolist() == list(range(first - P, first - P + 8))
    # Patches of 2 x 2 codes, of an image 2 codes wide: raster order.
    assert batch.loss_tokens.tolist() == list(range(8))
    assert np.array_equal(batch.packed.numpy(), made)
    start = len(letters.encode("<|im_start|>user\n"))
    labels = letters.encode("a fox<|im_end|>")
    assert batch.text_labels.tolist() == [*labels, *ends]
    rows = [*range(start - 1, start + 5), first + 7, first + 8]
    assert batch.text_rows.tolist() == rows
    mask = dense_mask(batch.ranges)
    causal = torch.ones_like(mask).tril()
    blocks = torch.zeros_like(mask)
    for k in range(3):
        rows = slice(first - P + k * P, first + k * P)
        blocks[rows, rows] = True
    assert torch.equal(mask, causal | blocks)


def test_an_image_that_is_given_has_no_loss_and_what_follows_sees_it():
    given = ImageSegment(tuple(range(3)), (2, 2), codes((2, 2)), generated=False)
    words = TextSegment((5, 6, 7), (0, 3))
    batch = pack_documents([[given, words], [words]], P)
    assert len(batch.loss_tokens) == 0
    assert batch.text_rows.tolist() == [6, 7, 8, 10, 11]  # none for the first of a document
    assert batch.text_labels.tolist() == [5, 6, 7, 6, 7]
    assert torch.equal(dense_mask(batch.ranges)[:10, :10], torch.ones(10, 10).tril().bool())
    assert not dense_mask(batch.ranges)[10:, :10].any()
    assert document_length([given, words]) == 10
    losses = model().losses(batch)
    assert (losses.text.shape, losses.vision.shape) == ((5,), (0, P))
    assert losses.means()[1] == 0


def test_documents_do_not_see_each_other():
    net, made = model(), documents()
    batch = pack_documents(made, P)
    drawn = draws(batch)
    together = net.losses(batch, drawn)
    text, patch = 0, 0
    for document in made:
        alone = pack_documents([document], P)
        rows = slice(patch, patch + len(alone.loss_tokens) // P)
        own = PackedDraws(None, drawn.time[rows], drawn.noise[rows])
        losses = net.losses(alone, own)
        end = text + len(losses.text)
        torch.testing.assert_close(losses.text, together.text[text:end])
        torch.testing.assert_close(losses.vision, together.vision[rows])
        text, patch = end, rows.stop
    assert (text, patch) == (len(together.text), len(together.vision))


@pytest.mark.parametrize("grid", [(4, 2), (2, 6)])
def test_sampling_conditions_the_head_as_training_does(grid):
    """Fed with the same tokens, step by step."""
    net, letters = model(), Letters()
    maker = DocumentMaker(letters, P, text_loss=False)
    batch = pack_documents([maker.document(maker.caption("a fox"), grid, codes(grid), 0)], P)
    made = net.conditions(batch)
    hidden = []

    def follow(result):
        hidden.append(result.hidden[0])
        return made.target[result.step][None]

    tokens = TextToImageSampler(net).sample(
        [letters.encode(PROMPT.format("a fox"))], image_prefix(letters, grid, P), grid=grid,
        guidance_scale=1.0, num_inference_steps=1, seeds=[0], on_step=follow,
    )  # fmt: skip
    assert torch.equal(tokens[0], made.target.flatten(0, 1))
    torch.testing.assert_close(torch.cat(hidden), made.hidden[batch.loss_rows])


@pytest.mark.parametrize("tied", [False, True])
def test_fused_and_reference_agree(tied):
    batch = pack_documents(documents(), P)
    found = {"fused": [], "reference": [], "truth": []}
    for name, parts in found.items():
        net = model(tie_word_embeddings=tied).train()
        net.to(torch.float64 if name == "truth" else torch.float32).ae.requires_grad_(False)
        for seed in range(4):
            with use_backend("auto" if name == "fused" else "reference"):
                drawn = draws(batch, seed, repeats=2)
                losses = net.losses(batch, drawn, perturb_rate=0.3, repeats=2)
                text, vision = losses.means()
                net.zero_grad()
                (0.01 * text + vision).backward()
            grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}
            parts.append(({n: part.detach() for n, part in losses._asdict().items()}, grads))
    # Errors of a tensor of few elements vary more than the rule allows: all count together.
    joined = {}
    for name, parts in found.items():
        joined[name] = {k: torch.stack([losses[k] for losses, _ in parts]) for k in parts[0][0]}
        scaled = [
            (grad / truth[n].square().mean().sqrt().to(grad.dtype)).flatten()
            for (_, grads), (_, truth) in zip(parts, found["truth"], strict=True)
            for n, grad in grads.items()
        ]
        joined[name]["gradients"] = torch.cat(scaled)
    for name, actual in joined["fused"].items():
        compare("staged", actual, joined["reference"][name], joined["truth"][name], name)


def test_logits_of_a_few_rows_exist_at_a_time(monkeypatch):
    net, rows = model(), []
    hidden, labels = torch.randn(21, QWEN.hidden_size), torch.arange(21)
    hidden.requires_grad_()
    weight = net.llm_model.output_weight
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    grads = torch.autograd.grad(expected.square().sum(), (hidden, weight))
    original = F.cross_entropy
    monkeypatch.setattr(text_to_image, "_TEXT_ROWS", 8)
    monkeypatch.setattr(F, "cross_entropy", lambda x, *a, **k: (
        rows.append(len(x)), original(x, *a, **k))[1])  # fmt: skip
    losses = net.text_losses(hidden, labels)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(torch.autograd.grad(losses.square().sum(), (hidden, weight)), grads)
    assert sorted(rows) == [5, 5, 8, 8, 8, 8]  # the forward pass, and once more for the gradient


def test_flips_are_of_generated_images_and_training_alone():
    net = model()
    given = ImageSegment(tuple(range(3)), (2, 2), codes((2, 2)), generated=False)
    made = ImageSegment(tuple(range(6)), (2, 2), codes((2, 2), 1))
    batch = pack_documents([[given, made]], P)
    drawn = PackedDraws((torch.zeros(4, BITS), torch.ones(4, BITS)))  # all flip
    for training in (False, True):
        net.train(training)
        tokens, fed = batch.tokens(BITS), net.conditions(batch, drawn, perturb_rate=0.5).fed
        assert torch.equal(fed[:4], tokens[:4])
        assert torch.equal(fed[4:], -tokens[4:] if training else tokens[4:])


@pytest.mark.parametrize("text", ["", " \n", "a<|im_end|>b", "<|vision_start|>", "a<|im_start|>"])
def test_captions_that_are_refused(text):
    with pytest.raises(ValueError, match="caption must"):
        DocumentMaker(Letters(), P, text_loss=True).caption(text)


@pytest.mark.parametrize("text", ["a fox 🦊", "ثعلب", "x" * 10_000, "<|no such token|>", "\na"])
def test_captions_that_are_taken(text):
    maker = DocumentMaker(Letters(), P, text_loss=True)
    made = maker.caption(text)
    first, end = made.predicted
    assert list(made.ids[first:end]) == Letters().encode(f"{text}<|im_end|>")
    length = document_length(maker.document(made, (2, 2), codes((2, 2)), 0))
    assert maker.length(made, (2, 2)) == length


def test_a_tokenizer_without_a_special_token_is_refused():
    class Fewer(Letters):
        def token_to_id(self, token):
            return None if token == self.missing else super().token_to_id(token)

    letters = Fewer()
    for letters.missing in SPECIAL[:4]:
        with pytest.raises(ValueError, match="tokenizer must have"):
            DocumentMaker(letters, P, text_loss=True).prefix((2, 2))
    letters.missing = "<|query_2|>"
    with pytest.raises(ValueError, match=r"<\|query_2\|> for images of 2 x 2 tokens, 4 a step"):
        DocumentMaker(letters, P, text_loss=True).prefix((2, 2))
    with pytest.raises(ValueError, match=r"<\|res_8\|> for images of 8 x 2"):
        DocumentMaker(Letters(), P, text_loss=True).prefix((8, 2))


def test_a_batch_whose_parts_do_not_fit_is_refused():
    values = vars(pack_documents(documents(), P))
    for name in ("position_ids", "packed", "fed_rows", "loss_rows", "text_labels"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            PackedBatch(**{**values, name: values[name][:-1]})
    with pytest.raises(ValueError, match="codes must be 8 of an image of 4 x 2, got 4"):
        pack_documents([[ImageSegment((0,) * 6, (4, 2), codes((2, 2)))]], P)
    with pytest.raises(ValueError, match=r"packed must be \[N, 2\] for tokens of 16 bits"):
        PackedBatch(**values).tokens(16)


def test_packs_have_every_document_once_an_epoch_and_keep_the_budget():
    lengths = np.random.default_rng(0).integers(3, 40, 200)
    packer = DocumentPacker(lengths, 64, seed=5)
    epochs = [[packer.pack(epoch, i) for i in range(len(packer))] for epoch in range(3)]
    for packs in epochs:
        assert Counter(np.concatenate(packs).tolist()) == Counter(range(200))
        assert max(lengths[pack].sum() for pack in packs) <= 64
    assert len(packer) <= 1.08 * lengths.sum() / 64 + 1
    assert sum(set(a) != set(b) for a, b in zip(*epochs[:2], strict=True)) > 0.9 * len(packer)
    again = DocumentPacker(lengths, 64, seed=5)
    assert np.array_equal(again.pack(2, 7), epochs[2][7])
    with pytest.raises(ValueError, match="max_tokens must be at least 39, the tokens of document"):
        DocumentPacker(lengths, 20, seed=0)
    with pytest.raises(ValueError, match="lengths must be one or more"):
        DocumentPacker([], 20, seed=0)
