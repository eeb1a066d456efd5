"""The pipelines of diffusers, against what its own pipelines do.

Pinned is the contract of diffusers 0.42 (with accelerate 1.15 and transformers 5.24). The cases are
those of the mixin that tests its pipelines, as far as they are for a model that does not denoise
whole images: there are no initial latents, prompt embeddings or attention processors to give.
"""

import copy
import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.42")
accelerate = pytest.importorskip("accelerate")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from diffusers.callbacks import PipelineCallback  # noqa: E402

from bitdance import BitDanceT2IPipeline, GenerationCancelled  # noqa: E402
from bitdance.integrations.diffusers import (  # noqa: E402
    BitDanceClassDiffusionPipeline,
    BitDanceScheduler,
    BitDanceT2IDiffusionPipeline,
)
from bitdance.pipelines.text_to_image_files import SamplingConfig  # noqa: E402
from bitdance_kernels import denoise_schedule, unpack_signs  # noqa: E402
from tests.model.helpers.releases import qwen_model, write_diffusers, write_flat  # noqa: E402
from tests.model.helpers.terminal import Terminal  # noqa: E402
from tests.model.helpers.tiny import tiny_pipeline  # noqa: E402

ROOT = Path(__file__).parents[3]
SAMPLING = SamplingConfig(height=8, width=12, num_inference_steps=2, guidance_scale=3.0)
COMPONENTS = {
    "text": (
        "tokenizer",
        "text_encoder",
        "projector",
        "diffusion_head",
        "autoencoder",
        "scheduler",
    ),
    "class": ("transformer", "autoencoder", "scheduler"),
}


def word_tokenizer():
    words = {"a": 0, "dog": 1, "cat": 2, "[UNK]": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|res_4|>", "<|res_6|>"]
    special += [f"<|query_{i}|>" for i in (1, 2, 3)]
    made.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in special])
    return made


@pytest.fixture(scope="module")
def natives():
    text = BitDanceT2IPipeline(qwen_model(), word_tokenizer(), SAMPLING)
    text.set_progress_bar_config(disable=True)
    return {"text": text, "class": tiny_pipeline()}


@pytest.fixture(params=["text", "class"])
def kind(request):
    return request.param


CLASSES = {"text": BitDanceT2IDiffusionPipeline, "class": BitDanceClassDiffusionPipeline}
SUBJECTS = {"text": ["a dog", "a cat"], "class": [1, 3]}


@pytest.fixture
def native(natives, kind):
    return copy.deepcopy(natives[kind])


@pytest.fixture
def pipe(native, kind):
    made = CLASSES[kind].from_native(native)
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, kind, **options):
    options = {"num_inference_steps": 2, "output_type": "pt"} | options
    return pipe(options.pop("subjects", SUBJECTS[kind]), **options)[0]


def seeded(*seeds):
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def test_the_call_has_the_arguments_of_diffusers(kind):
    names = set(inspect.signature(CLASSES[kind].__call__).parameters)
    required = {"num_inference_steps", "num_images_per_prompt", "generator", "output_type"}
    required |= {"return_dict", "guidance_scale", "callback_on_step_end"}
    required |= {"callback_on_step_end_tensor_inputs"}
    if kind == "text":
        required |= {"prompt", "negative_prompt", "height", "width"}
    assert required <= names
    assert isinstance(CLASSES[kind]._callback_tensor_inputs, list)


def test_images_are_those_of_the_other_pipeline(pipe, native, kind):
    for output_type in ("pt", "np", "latent"):
        made = draw(pipe, kind, output_type=output_type, generator=seeded(1, 2))
        wanted = native(
            SUBJECTS[kind], num_inference_steps=2, output_type=output_type, generator=seeded(1, 2)
        ).images
        assert np.array_equal(np.asarray(made), np.asarray(wanted))
    images = pipe(SUBJECTS[kind], num_inference_steps=2).images
    assert [image.mode for image in images] == ["RGB"] * 2


def test_a_tuple_and_an_output_are_equivalent(pipe, kind):
    output = pipe(SUBJECTS[kind], num_inference_steps=2, output_type="np")
    assert isinstance(output, diffusers.ImagePipelineOutput)
    options = {"num_inference_steps": 2, "output_type": "np", "return_dict": False}
    assert np.array_equal(pipe(SUBJECTS[kind], **options)[0], output.images)


def test_an_image_alone_is_that_of_a_batch(pipe, kind):
    whole = draw(pipe, kind, generator=seeded(5, 6))
    for i, subject in enumerate(SUBJECTS[kind]):
        alone = draw(pipe, kind, subjects=subject, generator=seeded(5 + i))
        assert torch.equal(alone[0], whole[i])
    several = draw(pipe, kind, num_images_per_prompt=3)
    assert len(several) == 6
    assert not torch.equal(draw(pipe, kind, guidance_scale=1.0), draw(pipe, kind))


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_what_is_saved_is_loaded(pipe, kind, tmp_path, shards):
    wanted = draw(pipe, kind)
    pipe.save_pretrained(tmp_path / "model", max_shard_size=shards)
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == sorted([*COMPONENTS[kind], "model_index.json"])
    sharded = list((tmp_path / "model" / "autoencoder").glob("*.index.json"))
    assert bool(sharded) == (shards is not None)
    for load in (diffusers.DiffusionPipeline.from_pretrained, CLASSES[kind].from_pretrained):
        loaded = load(tmp_path / "model")
        assert type(loaded) is CLASSES[kind]
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(draw(loaded, kind), wanted)
    if kind == "text":
        other = BitDanceT2IPipeline.from_pretrained(tmp_path / "model")
        other.set_progress_bar_config(disable=True)
        assert other.sampling == SAMPLING
        assert torch.equal(draw(other, kind), wanted)


def test_dtypes_are_those_that_are_asked_for(pipe, kind, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = CLASSES[kind].from_pretrained(tmp_path, dtype=torch.bfloat16)
    modules = [part for part in half.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for part in modules for p in part.parameters()} == {torch.bfloat16}
    mixed = {"autoencoder": torch.float32, "default": torch.bfloat16}
    mixed = CLASSES[kind].from_pretrained(tmp_path, dtype=mixed)
    assert mixed.autoencoder.dtype == torch.float32
    for loaded in (half, mixed):
        loaded.set_progress_bar_config(disable=True)
        assert draw(loaded, kind).isfinite().all()


def test_to_moves_and_casts_the_parameters_of_both_pipelines(pipe, native, kind):
    assert pipe.device == torch.device("cpu")
    assert pipe.to(torch.bfloat16) is pipe
    assert pipe.dtype == torch.bfloat16
    assert {p.dtype for p in pipe.native.model.parameters()} == {torch.bfloat16}
    pipe.to("meta")
    assert all(p.is_meta for p in pipe.native.model.parameters())


def test_components_make_another_pipeline(pipe, kind):
    assert set(pipe.components) == set(COMPONENTS[kind])
    options = {"sampling": dict(pipe.config.sampling)} if kind == "text" else {}
    again = CLASSES[kind](**pipe.components, **options)
    if kind == "text":
        again.set_progress_bar_config(disable=True)
        assert torch.equal(draw(again, kind), draw(pipe, kind))
    other = copy.deepcopy(pipe.autoencoder)
    with torch.no_grad():
        other.native.decoder.conv_out.weight.zero_()
        other.native.decoder.conv_out.bias.zero_()
    before = draw(pipe, kind)
    pipe.autoencoder = other
    assert draw(pipe, kind).unique().numel() == 1
    assert before.unique().numel() > 1


def test_a_progress_bar_is_shown_and_hidden(pipe, kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    pipe.set_progress_bar_config(disable=None)
    pipe.set_progress_bar_config(disable=False)
    draw(pipe, kind)
    assert re.search(r"\d+/\d+", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", Terminal())
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, kind)
    assert sys.stderr.getvalue() == ""


def test_a_callback_sees_the_pipeline_and_changes_latents(pipe, kind):
    seen = []

    def last_is_negative(given, step, timestep, tensors):
        assert given is pipe
        assert set(tensors) == {"latents"}
        seen.append((step, timestep))
        if step == given.num_timesteps - 1:
            tensors["latents"] = -torch.ones_like(tensors["latents"])
        return tensors

    packed = draw(pipe, kind, output_type="latent", callback_on_step_end=last_is_negative)
    steps = pipe.num_timesteps
    assert seen == [(i, steps - 1 - i) for i in range(steps)]
    assert (unpack_signs(packed)[:, -4:] == -1).all()
    inputs = {"callback_on_step_end_tensor_inputs": pipe._callback_tensor_inputs}
    names = []
    draw(pipe, kind, callback_on_step_end=lambda p, i, t, kw: names.append(set(kw)) or kw, **inputs)
    assert names == [set(pipe._callback_tensor_inputs)] * steps
    known = "latents, packed_latents, generated_latents"
    with pytest.raises(ValueError, match=f"must be of {known}, got 'other'"):
        draw(pipe, kind, callback_on_step_end_tensor_inputs=["other"])
    with pytest.raises(TypeError, match="callback_on_step_end must be a function, got int"):
        draw(pipe, kind, callback_on_step_end=3)


def test_a_callback_of_diffusers_names_its_tensors(pipe, kind):
    class Count(PipelineCallback):
        tensor_inputs = ("packed_latents",)
        seen = ()

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen = (*self.seen, *callback_kwargs)
            return callback_kwargs

    count = Count(cutoff_step_ratio=1.0)
    draw(pipe, kind, callback_on_step_end=count)
    assert count.seen == ("packed_latents",) * pipe.num_timesteps


def test_a_callback_stops_the_call(pipe, kind):
    def stop(given, step, timestep, tensors):
        given._interrupt = step == 1
        return tensors

    with pytest.raises(GenerationCancelled, match="AR step 2"):
        draw(pipe, kind, callback_on_step_end=stop)
    assert pipe.interrupt
    draw(pipe, kind)
    assert not pipe.interrupt


def test_components_are_on_the_device_in_their_turn(pipe, kind, monkeypatch):
    """Model offload: sampling's components first, and the decoder after they have left."""
    wanted, moves = draw(pipe, kind), []
    hook = accelerate.hooks.CpuOffload
    names = {id(part): name for name, part in pipe.components.items()}
    before, back = hook.pre_forward, hook.init_hook

    def pre_forward(self, module, *args, **kwargs):
        moves.append(("to", names[id(module)]))
        assert self.execution_device == torch.device("cpu:0")
        return before(self, module, *args, **kwargs)

    def init_hook(self, module):
        moves.append(("from", names[id(module)]))
        return back(self, module)

    pipe.enable_model_cpu_offload(device="cpu")
    monkeypatch.setattr(hook, "pre_forward", pre_forward)
    monkeypatch.setattr(hook, "init_hook", init_hook)
    assert torch.equal(draw(pipe, kind), wanted)
    sampled = [
        name for name in COMPONENTS[kind] if name not in ("tokenizer", "autoencoder", "scheduler")
    ]
    first = [("to", name) for name in sampled] + [("from", name) for name in sampled]
    assert moves[: len(first) + 1] == [*first, ("to", "autoencoder")]
    assert ("from", "autoencoder") in moves
    assert torch.equal(draw(pipe, kind), wanted), "a call leaves everything as it was"
    moves.clear()
    draw(pipe, kind, output_type="latent")
    assert ("to", "autoencoder") not in moves


def test_offload_by_layers_is_refused(pipe):
    for enable in (pipe.enable_sequential_cpu_offload, pipe.enable_group_offload):
        with pytest.raises(NotImplementedError, match="use enable_model_cpu_offload"):
            enable()
    assert not any(hasattr(part, "_hf_hook") for part in pipe.components.values())


def test_models_in_other_layouts_become_pipelines(natives, tmp_path):
    folder = tmp_path / "class"
    natives["class"].save_pretrained(folder)
    made = BitDanceClassDiffusionPipeline.from_pretrained(folder, dtype="bfloat16")
    assert made.dtype == torch.bfloat16
    assert tuple(made.config.classes) == natives["class"].classes
    model = natives["text"].model
    for write in (write_flat, write_diffusers):
        folder = write(tmp_path / write.__name__, model)
        made = BitDanceT2IDiffusionPipeline.from_pretrained(folder, tokenizer=word_tokenizer())
        assert all(
            torch.equal(part, model.state_dict()[name])
            for name, part in made.native.model.state_dict().items()
        )


def test_the_scheduler_is_that_of_the_model(pipe, native, kind):
    scheduler = pipe.scheduler
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    head = native.model.vision_head if kind == "text" else native.model.head
    assert scheduler.config.time_shift == head.config.time_shift
    scheduler.set_timesteps(2)
    table, times = denoise_schedule(2, time_shift=head.config.time_shift)
    assert torch.equal(scheduler.timesteps, times)
    assert len(scheduler) == 3
    state, draws, generator = torch.ones(4, 8), *seeded(0, 0)
    for i, (a, b, s) in enumerate(table.tolist()):
        noise = torch.randn(4, 8, generator=draws) if s else torch.zeros(4, 8)
        wanted = a * state + b * state.sign() + s * noise
        (state,) = scheduler.step(state.sign(), times[i], state, generator, return_dict=False)
        torch.testing.assert_close(state, wanted)
    with pytest.raises(ValueError, match="all 3 steps are done"):
        scheduler.step(state, times[2], state)


def test_another_scheduler_shifts_the_times(pipe, native, kind, tmp_path):
    before = draw(pipe, kind, output_type="latent")
    pipe.scheduler = BitDanceScheduler.from_config(pipe.scheduler.config, time_shift=3.0)
    after = draw(pipe, kind, output_type="latent")
    head = native.model.vision_head if kind == "text" else native.model.head
    assert head.config.time_shift == head.net.config.time_shift == 1.0, "it is not changed"
    other = copy.deepcopy(native)
    head = other.model.vision_head if kind == "text" else other.model.head
    head.net.config = dataclasses.replace(head.config, time_shift=3.0)
    wanted = other(SUBJECTS[kind], num_inference_steps=2, output_type="latent", seed=0).images
    assert np.array_equal(np.asarray(after), np.asarray(wanted))
    assert not np.array_equal(np.asarray(after), np.asarray(before))
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.time_shift == 3.0
    assert np.array_equal(np.asarray(draw(loaded, kind, output_type="latent")), np.asarray(after))
    if kind == "text":  # this library reads the folder too, and what it says of the head
        assert BitDanceT2IPipeline.from_pretrained(tmp_path).config.head.time_shift == 3.0


def test_a_folder_without_scheduler_is_loaded(pipe, kind, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["scheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.time_shift == pipe.scheduler.config.time_shift


@pytest.mark.parametrize("time_shift", [0, -1.0, float("inf"), "1", True])
def test_what_is_no_time_shift_is_refused(time_shift):
    with pytest.raises((ValueError, TypeError), match="time_shift must be"):
        BitDanceScheduler(time_shift)


def test_steps_of_the_scheduler_are_in_order():
    scheduler, x = BitDanceScheduler(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="set_timesteps must be called first"):
        scheduler.step(x, 0.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(
        ValueError, match=r"timestep must be 0\.0, the next of timesteps, got 0\.95"
    ):
        scheduler.step(x, 0.95, x)
    with pytest.raises(ValueError, match=r"model_output must have the sample's shape \[2, 3\]"):
        scheduler.step(x[:1], 0.0, x)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        scheduler.set_timesteps(0)


def test_quantized_pipelines_are_refused(natives):
    changed = copy.deepcopy(natives["text"])
    changed.model.llm_model.model.layers[0].mlp.up_proj = _float8(changed.model)
    with pytest.raises(ValueError, match="pipeline must not be quantized, got one with fp8_weight"):
        BitDanceT2IDiffusionPipeline.from_native(changed)


def _float8(model):
    from bitdance.models.quantization import Float8Linear

    return Float8Linear(model.llm_model.model.layers[0].mlp.up_proj, quantize_inputs=False)


def test_nothing_else_imports_diffusers():
    inside = ROOT / "bitdance" / "integrations" / "diffusers"
    pattern = re.compile(
        r"^ *(import|from) (diffusers|accelerate|bitdance\.integrations\.diffusers)", re.M
    )
    for path in (ROOT / "bitdance").rglob("*.py"):
        found = pattern.search(path.read_text())
        assert inside in path.parents or found is None, path
