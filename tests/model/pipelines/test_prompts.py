"""Prompts and negative prompts, and tokenizers of several libraries."""

import dataclasses

import numpy as np
import pytest
import torch

from bitdance import BitDanceT2IPipeline
from bitdance.pipelines.prompts import NO_PROMPT, PROMPT, token_ids
from bitdance.sampling.text_to_image import TextToImageSampler
from tests.model.models.test_text_to_image import CONFIG, tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words

OPTIONS = {**SIZE, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def model():
    return tiny()


def draw(model, prompts, words=None, **options):
    return BitDanceT2IPipeline(model, words or Words())(prompts, **OPTIONS | options).images


def test_a_negative_prompt_is_what_guidance_leads_away_from(model):
    """One text for the unconditional rows of all pictures, or one for each."""
    asked, sample = [], TextToImageSampler.sample
    pipeline = BitDanceT2IPipeline(model, Words())
    ids = lambda text: Words().encode(text)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TextToImageSampler, "sample",
            lambda self, *a, **k: asked.append(k["negative_prompts"]) or sample(self, *a, **k),
        )  # fmt: skip
        plain = pipeline(["a", "b"], **OPTIONS).images
        one = pipeline(["a", "b"], negative_prompt="fog", **OPTIONS).images
        each = pipeline(["a", "b"], negative_prompt=["fog", ""], **OPTIONS).images
        empty = pipeline(["a", "b"], negative_prompt="", **OPTIONS).images
        batches = pipeline(["a", "b"], negative_prompt=["", "fog"], batch_size=1, **OPTIONS).images
    fog, none = ids(PROMPT.format("fog")), ids(NO_PROMPT)
    assert asked == [[none] * 2, [fog] * 2, [fog, none], [none] * 2, [none], [fog]]
    assert torch.equal(empty, plain)
    assert torch.equal(each, torch.stack([one[0], plain[1]]))
    assert torch.equal(batches, torch.stack([plain[0], one[1]]))
    assert not torch.equal(one[0], plain[0])
    assert not torch.equal(one[1], plain[1])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a", 3], {}, "prompt must be text, one or several, got 3"),
        (None, {}, "prompt must be text, one or several, got None"),
        (["a"], {"negative_prompt": ["b", "c"]}, r"negative_prompt must be one text, or .* got 2"),
        (["a"], {"negative_prompt": 5}, "negative_prompt must be text, one or several, got 5"),
        (["a"], {"height": 8.5}, "height must be an integer, got 8.5"),
        (["a"], {"width": "12"}, "width must be an integer, got '12'"),
        (["a"], {"seed": 1.5}, "seed must be an integer from 0"),
        (
            ["a"],
            {"num_inference_steps": True},
            "steps must be an integer from 1 to 1000000, got True",
        ),
        (["a"], {"guidance_scale": "7"}, "guidance_scale must be a number, got '7'"),
        (["a"], {"callback_on_step_end": 1}, "callback_on_step_end must be a function, got 1"),
    ],
)
def test_arguments_of_another_kind_are_refused(model, prompts, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        draw(model, prompts, **options)


class _Encoding:
    def __init__(self, ids):
        self.ids = ids


ENCODINGS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "tensor": torch.tensor,
    "row of a tensor": lambda ids: torch.tensor([ids]),
    "row": lambda ids: [ids],
    "mapping": lambda ids: {"input_ids": ids, "attention_mask": [1] * len(ids)},
    "mapping of tensors": lambda ids: {"input_ids": torch.tensor([ids])},
    "encoding": _Encoding,
}


@pytest.mark.parametrize("make", ENCODINGS.values(), ids=ENCODINGS)
def test_a_tokenizer_may_return_ids_in_any_of_these_forms(model, make):
    class Other(Words):
        def encode(self, text):
            return make(super().encode(text))

    assert torch.equal(draw(model, "a fox", Other()), draw(model, "a fox"))


def test_a_tokenizer_may_name_tokens_as_either_library_does(model):
    class Other:
        def encode(self, text):
            return _Encoding(Words().encode(text))

        def token_to_id(self, token):
            return Words().convert_tokens_to_ids(token)

    assert torch.equal(draw(model, "a fox", Other()), draw(model, "a fox"))
    del Other.token_to_id
    with pytest.raises(TypeError, match="convert_tokens_to_ids or token_to_id, got Other"):
        draw(model, "a fox", Other())


@pytest.mark.parametrize("text", ["", "ثعلب أحمر", "🦊", "<|no such token|>", "a\n\tb", "é\u0301"])
def test_any_text_is_a_prompt(model, text):
    """An empty one has no words; what the tokenizer does not know as a token is spelled."""
    assert draw(model, text).shape == draw(model, "a fox").shape


@pytest.mark.parametrize("ids", [None, "12", b"12", 5, [1.5], ["1"], [[1], [2]], [True], {}, 1j])
def test_a_tokenizer_that_returns_something_else_is_refused(ids):
    class Other(Words):
        def encode(self, text):
            return ids

    with pytest.raises(TypeError, match=r"tokenizer\.encode must return a list of token ids, got"):
        token_ids(Other(), "a fox")


def test_a_prompt_that_leaves_no_position_for_its_image_is_refused():
    """Before the first batch is drawn; the longest prompt that fits is drawn."""
    llm = dataclasses.replace(CONFIG.llm, max_position_embeddings=80)
    model, steps = tiny(llm=llm), []
    # 6 x 4 tokens of which 4 are not fed, 6 ids of the prefix, and the template of a prompt.
    room = 80 - 20 - 6 - len(Words().encode(PROMPT.format("")))
    message = r"prompts must have at most 54 tokens beside an image of 4 x 6 tokens, since"
    with pytest.raises(ValueError, match=r"54 tokens .* 80 positions, got 55"):
        draw(
            model, ["a", "x" * (room + 1)], batch_size=1,
            callback_on_step_end=lambda *_: steps.append(1),
        )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        draw(model, "a", negative_prompt="x" * (room + 1))
    assert steps == []
    assert draw(model, "x" * room).shape == (1, 24, 1)


def test_an_id_beyond_the_vocabulary_is_refused_before_anything_is_drawn(model):
    class Other(Words):
        def encode(self, text):
            return super().encode(text) + [50] * ("fox" in text)

    steps = []
    with pytest.raises(ValueError, match="token ids must be 0 to 49, got 50"):
        draw(
            model, ["a", "fox"], Other(), batch_size=1,
            callback_on_step_end=lambda *_: steps.append(1),
        )  # fmt: skip
    assert steps == []
