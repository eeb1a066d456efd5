"""The page's answers without Gradio: settings, runs, visitors, bits, messages."""

import base64
import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance import BitDanceT2IPipeline, GenerationCancelled
from bitdance.integrations.demo.bit_map import bit_map
from bitdance.integrations.demo.models import InputError, Limits, Picture, demo_model
from bitdance.integrations.demo.runner import Progress, Run, Runner
from bitdance.integrations.demo.studio import Studio
from bitdance.integrations.demo.visits import Visits
from bitdance.pipelines.text_to_image_files import SamplingConfig
from tests.model.helpers.demo import CLASSES, TEXTS, gated, pixels_of, text_pipeline
from tests.model.helpers.serving import SECONDS
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.helpers.words import SizedWords
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image


@pytest.fixture(scope="module")
def classes():
    return demo_model(tiny_pipeline(), "tiny", Limits(max_images=4))


@pytest.fixture(scope="module")
def texts():
    return demo_model(text_pipeline(), "words")


@pytest.fixture
def runner():
    made = Runner()
    yield made
    made.close()


class Ticks:
    """A clock that goes on by a second each time that it is read."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "zebra"}, "no class 'zebra'"),
        ({"subject": ""}, "Choose a class"),
        ({"subject": None}, "Choose a class"),
        ({"subject": ["boot"]}, "class must be text"),
        ({"negative_prompt": "dogs"}, "takes no negative prompt"),
        ({"seed": "-1"}, "seed must be a whole number from 0 to 18446744073709551615"),
        ({"seed": str(2**64)}, "seed must be"),
        ({"seed": "9" * 5000}, "seed must be"),
        ({"seed": "1e3"}, "seed must be"),
        ({"seed": "seven"}, "or empty for a random one, got 'seven'"),
        ({"seed": "\u0663"}, "seed must be"),
        ({"guidance_scale": float("nan")}, "guidance must be from 0 to 20"),
        ({"guidance_scale": 1e9}, "guidance must be"),
        ({"guidance_scale": "high"}, "guidance must be"),
        ({"num_inference_steps": 0}, "number of steps must be a whole number from 1 to 250"),
        ({"num_inference_steps": 10**9}, "number of steps must be"),
        ({"num_images": 5}, "number of images must be a whole number from 1 to 4"),
        ({"num_images": 1.5}, "number of images must be"),
        ({"height": 16}, "height must be of 8 pixels, got 16"),
    ],
)
def test_what_classes_refuse(classes, changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        classes.settings(**{**CLASSES, **changes})
    assert error.value.field in changes
    assert len(str(error.value)) < 300
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "  "}, "prompt is empty"),
        ({"subject": "a" * 2001}, "prompt has 2,001 characters; at most 2,000"),
        ({"negative_prompt": "a" * 2001}, "negative prompt has 2,001 characters"),
        ({"height": 10}, "height must be of 4, 8, 12 pixels, got 10"),
        ({"height": 12, "width": 12}, "12 x 12 pixels are too many; at most 96"),
        ({"width": "wide"}, "width must be of"),
    ],
)
def test_what_texts_refuse(texts, changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        texts.settings(**{**TEXTS, **changes})
    assert error.value.field in changes


def test_a_prompt_longer_than_the_models_positions(monkeypatch):
    import dataclasses

    from tests.model.models.test_text_to_image import QWEN

    llm = dataclasses.replace(QWEN, max_position_embeddings=100)
    pipeline = BitDanceT2IPipeline(
        tiny_text_to_image(llm=llm), SizedWords(), SamplingConfig(height=8, width=8)
    )
    model = demo_model(pipeline, "short")
    with pytest.raises(InputError, match=r"prompt is too long: it has \d+ tokens, .* room for 82"):
        model.settings("a" * 80)
    with pytest.raises(InputError, match="negative prompt is too long"):
        model.settings("a", negative_prompt="b" * 80)
    assert model.settings("a").size == (8, 8)


def test_an_empty_seed_is_random(classes):
    seeds = {classes.settings("boot", seed=empty).seed for empty in ("", " ", None)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert classes.settings("boot", seed=f" {2**64 - 1} ").seed == 2**64 - 1


def test_defaults_are_the_models(classes, texts):
    settings = classes.settings("boot")
    assert (settings.guidance_scale, settings.num_inference_steps) == (2.0, 100)
    assert (settings.size, settings.num_images) == ((8, 8), 1)
    settings = texts.settings("a cat")
    assert (settings.guidance_scale, settings.num_inference_steps) == (3.0, 2)
    assert settings.size == (8, 12)


def test_sizes_are_those_that_the_tokenizer_knows():
    model = demo_model(text_pipeline(), "words", Limits(max_pixels=40))
    assert model.heights == (4, 8)
    assert model.size == (4, 4)  # the model's own has too many pixels
    with pytest.raises(ValueError, match="max_pixels must be of an image"):
        demo_model(text_pipeline(), "words", Limits(max_pixels=9))


@pytest.mark.parametrize("kind", ["classes", "texts"])
def test_pictures_are_those_of_the_pipeline(kind, request, runner):
    model = request.getfixturevalue(kind)
    entries = CLASSES if kind == "classes" else TEXTS
    settings = model.settings(**entries)
    *progress, pictures = runner.draw(model, settings, Run())
    if kind == "classes":
        call = {"num_inference_steps": 2}
    else:
        call = {"negative_prompt": "dogs", "height": 8, "width": 12}
    call |= {"num_images_per_prompt": 2, "seed": 7}
    expected = model.pipeline(entries["subject"], **call).images
    latents = model.pipeline(entries["subject"], **call, output_type="latent").images
    assert [p.sample_id for p in pictures] == [0, 1]
    for picture, image, packed in zip(pictures, expected, latents, strict=True):
        assert np.array_equal(picture.image, image)
        assert np.array_equal(picture.packed, packed)
    assert [p.step for p in progress] == sorted({p.step for p in progress})
    assert progress[-1].step == progress[-1].ar_steps


def test_a_preview_follows_each_patch_that_leaves_time_for_it(classes):
    settings = classes.settings(**CLASSES)
    seen = []

    class EveryPatch(Run):
        def publish(self, progress):
            seen.append(progress)
            super().publish(progress)

    def previews(clock):
        runner = Runner(clock)
        try:
            seen.clear()
            list(runner.draw(classes, settings, EveryPatch()))
        finally:
            runner.close()
        return [progress.previews is not None for progress in seen]

    assert previews(Ticks()) == [True, False, False, False]  # a preview takes a tick of four
    moments = iter([0, 0, 0, 1, 1, 1, 2, 2, 2])  # a preview takes no time
    assert previews(lambda: next(moments)) == [True, True, True, False]
    assert len(seen) == 4
    first = seen[0].previews
    gray = np.asarray(first[0]) == 128
    assert 0.5 < gray.mean() < 1  # a quarter is drawn


def test_a_slow_reader_gets_the_newest(classes):
    run, image = Run(), Image.new("RGB", (1, 1))
    run.publish(Progress(1, 4, [image]))
    run.publish(Progress(2, 4, None))
    reader = run.read()
    assert next(reader) == Progress(2, 4, [image])
    run.publish(Progress(3, 4, None))
    assert next(reader) == Progress(3, 4, None)
    run.end()
    assert list(reader) == []


def test_cancelled_after_a_patch(classes, runner, monkeypatch):
    settings, run = classes.settings(**CLASSES), Run()
    with monkeypatch.context() as patch:
        reached, go_on = gated(classes, patch)
        reader = runner.draw(classes, settings, run)
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(list, reader)
            assert reached.wait(SECONDS)
            run.cancel()
            go_on.set()
            with pytest.raises(GenerationCancelled, match="stopped after patch 1 of 4"):
                read.result(SECONDS)
    *_, pictures = runner.draw(classes, settings, Run())  # nothing is left behind
    expected = classes.pipeline("boot", num_inference_steps=2, seed=7).images[0]
    assert np.array_equal(pictures[0].image, expected)


def test_cancelled_while_it_waits(classes, runner, monkeypatch):
    settings, run = classes.settings(**CLASSES), Run()
    reached, go_on = gated(classes, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(list, runner.draw(classes, settings, Run()))
        assert reached.wait(SECONDS)
        second = pool.submit(list, runner.draw(classes, settings, run))
        run.cancel()
        go_on.set()
        assert len(first.result(SECONDS)[-1]) == 2
        with pytest.raises(GenerationCancelled, match="stopped before the first patch"):
            second.result(SECONDS)


def test_a_reader_that_leaves_stops_the_run(classes, runner):
    run = Run()
    reader = runner.draw(classes, classes.settings(**CLASSES), run)
    next(reader)
    reader.close()
    assert run.cancelled


def test_a_runner_that_closes_ends_all_runs(classes, monkeypatch):
    runner, settings = Runner(), classes.settings(**CLASSES)
    reached, go_on = gated(classes, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(list, runner.draw(classes, settings, Run()))
        assert reached.wait(SECONDS)
        second = pool.submit(list, runner.draw(classes, settings, Run()))
        while not runner._executor._work_queue.qsize():
            assert not second.done()
        runner.close()
        go_on.set()
        for read in (first, second):
            with pytest.raises(GenerationCancelled):
                read.result(SECONDS)


def test_two_visitors_get_their_own_pictures(classes, runner):
    studio = Studio(classes, runner)

    def visit(number):
        visitor, drawn = f"visitor {number}", []
        for seed in range(3):
            entries = {"subject": ("boot", "bag")[number], "seed": str(10 * number + seed)}
            *_, last = studio.draw(visitor, {**entries, "num_inference_steps": 1})
            drawn.append(last)
        return drawn

    with ThreadPoolExecutor(2) as pool:
        visits = list(pool.map(visit, range(2)))
    for number, drawn in enumerate(visits):
        for seed, view in enumerate(drawn):
            name = ("boot", "bag")[number]
            expected = classes.pipeline(name, num_inference_steps=1, seed=10 * number + seed)
            (shown,) = pixels_of(view.grid)
            assert np.array_equal(shown, expected.images[0])
            assert len(view.pictures) == seed + 1  # the newest first, none of the other visitor
            assert {p.settings.subject for p in view.pictures} == {name}
            assert view.pictures[0].settings.seed == 10 * number + seed


def picture_of(classes, side):
    settings = classes.settings(**CLASSES)
    return Picture(settings, 0, Image.new("RGB", (side, side)), np.zeros((4, 1), np.uint8))


def test_memory_of_visits_is_bounded(classes):
    picture = picture_of(classes, 10)
    assert picture.num_bytes == 304
    visits = Visits(max_pictures=3, max_visits=2, max_bytes=5 * 304)
    for visitor, count in (("a", 3), ("b", 4)):
        visits.finish(visitor, visits.begin(visitor), [picture] * count)
    assert [len(visits.pictures(v)) for v in "ab"] == [2, 3]  # of who was away for longer
    run = visits.begin("a")
    visits.begin("c")
    assert len(visits) == 2
    assert visits.pictures("b") == []  # forgotten
    visits.begin("d")
    assert run.cancelled
    assert visits.finish("a", run, [picture]) == []


def test_what_is_cancelled_or_left_is_not_remembered(classes):
    visits, picture = Visits(), picture_of(classes, 1)
    first, second = visits.begin("a"), visits.begin("a")
    assert first.cancelled
    assert visits.finish("a", first, [picture]) == []
    assert not second.cancelled
    assert visits.cancel("a")
    assert second.cancelled
    assert not visits.cancel("a")
    assert visits.finish("a", second, [picture]) == []
    third = visits.begin("a")
    visits.leave("a")
    assert third.cancelled
    assert visits.finish("a", third, [picture]) == []
    assert len(visits) == 0
    assert not visits.cancel("nobody")


def test_a_run_on_the_page(classes, runner):
    studio = Studio(classes, runner)
    begun, *views, last = studio.draw("a", {**CLASSES, "seed": "3"})
    assert begun.grid.count("bd-cell") == 2
    assert "patch 4 of 4" in views[-1].status
    assert "Seed 3." in last.status
    shown, bits = pixels_of(last.details)
    assert np.array_equal(shown, last.pictures[0].image)
    assert np.array_equal(bits, bit_map(classes.bits(last.pictures[0])))
    file = re.search(r'download="tiny-3-0.npy" href="data:[^,]+,([^"]+)"', last.details)[1]
    saved = np.load(io.BytesIO(base64.b64decode(file)))
    decoded = classes.pipeline.decode(torch.from_numpy(saved), seed=3)[0]
    assert np.array_equal(decoded, last.pictures[0].image)
    assert np.array_equal(pixels_of(studio.select("a", 1))[0], last.pictures[1].image)
    for number in (-1, 2):
        assert "not kept any more" in studio.select("a", number)
    assert "not kept any more" in studio.select("b", 0)


def test_a_visitor_stops_a_run(classes, runner, monkeypatch):
    studio = Studio(classes, runner)
    reached, go_on = gated(classes, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(lambda: list(studio.draw("a", CLASSES)))
        assert reached.wait(SECONDS)
        assert "Stopped." in studio.stop("a")
        go_on.set()
        *_, last = read.result(SECONDS)
    assert "Stopped after patch 1 of 4." in last.status
    assert studio.visits.pictures("a") == []


def test_a_page_that_reads_no_further_stops_a_run(classes, runner, monkeypatch):
    studio, runs = Studio(classes, runner), []
    begin = studio.visits.begin
    monkeypatch.setattr(
        studio.visits, "begin", lambda visitor: runs.append(begin(visitor)) or runs[-1]
    )
    views = studio.draw("a", CLASSES)
    next(views)
    next(views)
    views.close()
    assert runs[0].cancelled
    assert not studio.visits.cancel("a")  # it is over


def test_messages_have_no_trace(classes, runner, monkeypatch, caplog):
    studio = Studio(classes, runner)
    entries = {**CLASSES, "seed": "<script>alert(1)</script>"}
    assert studio.check(entries).field == "seed"
    assert studio.check(CLASSES) is None
    (view,) = studio.draw("a", entries)
    assert 'role="alert"' in view.status
    assert "<script>" not in view.status

    def failing(error):
        def sample(settings, callback):
            raise error

        monkeypatch.setattr(classes, "sample", sample)
        *_, view = studio.draw("a", CLASSES)
        assert "Traceback" not in view.status
        return view.status

    assert "not enough memory" in failing(MemoryError())
    assert "not enough memory" in failing(RuntimeError("DefaultCPUAllocator: not enough memory"))
    assert not caplog.records
    secret = failing(KeyError("/secret/path"))
    assert "failed (KeyError)" in secret
    assert "/secret/path" not in secret
    assert "/secret/path" in caplog.text


def test_nan_of_a_model_is_a_message(runner):
    pipeline = tiny_pipeline()
    model = demo_model(pipeline, "broken")
    with torch.no_grad():
        next(pipeline.model.vae.decoder.parameters()).fill_(float("nan"))
    *_, view = Studio(model, runner).draw("a", CLASSES)
    assert "The model has failed" in view.status
    assert "NaN or infinity" in view.status


def test_what_a_visitor_writes_is_text_on_the_page(texts, runner):
    evil = '<img src=x onerror="alert(1)">\'"&'
    entries = {**TEXTS, "subject": evil, "negative_prompt": evil}
    *_, view = Studio(texts, runner).draw("a", entries)
    for part in (view.grid, view.details):
        assert "onerror=&quot;" in part
        assert 'onerror="' not in part
        assert "src=x" not in re.sub(r'alt="[^"]*"|<dd>[^<]*</dd>', "", part)
