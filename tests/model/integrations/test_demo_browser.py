"""The page in a browser: what a visitor sees and does, and that nothing else is asked for it."""

import shutil

import numpy as np
import pytest

from tests.model.helpers.demo import gated, pixels_of, served
from tests.model.helpers.serving import SECONDS
from tests.model.helpers.tiny import tiny_pipeline

pytest.importorskip("gradio", minversion="6.31")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

from bitdance.integrations.demo.models import demo_model  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return demo_model(tiny_pipeline(), "tiny")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def port(model):
    with served([model]) as (_, port):
        yield port


@pytest.fixture
def page(browser, port):
    """The page as a visitor finds it; fails on errors of scripts and on requests to others."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(1000 * SECONDS)
    page, errors, urls = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    context.on("request", lambda request: urls.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_role("button", name="Draw").wait_for()
    page.get_by_label("number input for Denoising steps").fill("2")
    yield page
    assert errors == []
    assert len(urls) > 5
    own = (f"http://127.0.0.1:{port}/", "data:", "blob:")
    assert [url for url in urls if not url.startswith(own)] == []
    context.close()


def test_a_visitor_draws_looks_and_saves(model, page, tmp_path):
    page.get_by_label("Seed").first.fill("7")
    page.get_by_role("button", name="Draw").click()
    page.locator(".bd-facts").wait_for()
    images = model.pipeline("boot", num_inference_steps=2, num_images_per_prompt=4, seed=7).images
    shown = pixels_of(page.locator(".bd-grid").inner_html())
    assert np.array_equal(shown, images)
    pictures = page.locator(".bd-history img")
    assert pictures.count() == 4
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth") == 8 for i in range(4))
    pictures.nth(2).click()
    page.get_by_text("7, sample id 2").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="packed bits (.npy)").click()
    assert download.value.suggested_filename == "tiny-7-2.npy"
    download.value.save_as(tmp_path / "bits.npy")
    packed = model.pipeline(
        "boot", num_inference_steps=2, seed=7, sample_ids=[2], output_type="latent"
    ).images
    assert np.array_equal(np.load(tmp_path / "bits.npy"), packed)


def test_a_visitor_sees_patches_and_stops(model, page, monkeypatch):
    reached, go_on = gated(model, monkeypatch, after=1)
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("patch 1 of 4").wait_for()
    first = pixels_of(page.locator(".bd-grid").inner_html())[0]
    assert (first == 128).mean() > 0.5  # gray, but for the patch
    assert reached.wait(SECONDS)
    page.get_by_role("button", name="Stop").click()
    go_on.set()
    page.get_by_text("Stopped").wait_for()
    page.get_by_role("button", name="Draw").click()
    page.locator(".bd-facts").wait_for()


def test_a_visitor_makes_a_mistake(page):
    seed = page.get_by_label("Seed").first
    seed.fill("seven")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text(
        "The seed must be a whole number from 0 to 18446744073709551615"
    ).first.wait_for()
    seed.fill("8")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("Seed 8.").wait_for()


def test_a_visitor_sends_pictures(page, tmp_path):
    from PIL import Image

    page.get_by_role("tab", name="Your picture").click()
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("Choose a picture first.").wait_for()
    Image.new("RGB", (16, 8), "red").save(tmp_path / "red.png")
    page.set_input_files("input[type=file]", tmp_path / "red.png")
    page.get_by_text("red.png").first.wait_for()
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("red.png, 16 x 8 pixels").wait_for()
    original, rebuilt, bits = pixels_of(page.locator(".bd-parts").inner_html())
    assert (original == (255, 0, 0)).all()
    assert rebuilt.shape == (8, 16, 3)
    assert bits.shape == (4 * 3 - 1, 8 * 5 - 1)
