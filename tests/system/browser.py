"The explorer in JupyterLab as `make lab` starts it, and a run in TensorBoard, in a headless Chromium."
import base64
import time
from io import BytesIO

import numpy as np
import pytest
from chromium import PATIENCE, chromium, lab, new_page, run_cells, tensorboard
from PIL import Image

from fwi_i2sb import load_run
from fwi_i2sb.inference.explorer import Explorer

PICTURES = ("maps", "profile", "state", "gather")


def pixels(png: bytes) -> np.ndarray: return np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=float)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser: yield browser


@pytest.fixture(scope="module")
def page(browser, mini, tmp_path_factory):
    "The explorer of the mini run in a browser."
    code = f"from fwi_i2sb.inference.widget import explore\nexplore({str(mini)!r})"
    with lab(tmp_path_factory.mktemp("lab"), code) as address:
        page = new_page(browser, 1500, 1300)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        run_cells(page, address)
        page.wait_for_function("document.querySelectorAll('.fwi-explorer img').length == 4")
        yield page


@pytest.fixture(scope="module")
def explorer(mini):
    "The same explorer here: what the browser has to show."
    return Explorer(load_run(mini))


def shown(page, name: str) -> np.ndarray | None:
    "The pixels of a picture in the page, as the browser decoded them; None while it is being replaced."
    script = """async name => { const image = document.querySelector('.fwi-' + name);
        try { await image.decode() } catch { return null }
        const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        canvas.getContext('2d').drawImage(image, 0, 0); return canvas.toDataURL('image/png').split(',')[1] }"""
    found = page.evaluate(script, name)
    return found and pixels(base64.b64decode(found))


def difference(found: np.ndarray | None, picture: np.ndarray) -> float:
    return np.inf if found is None or found.shape != picture.shape else np.abs(found - picture).mean()


def becomes(page, explorer, **choices):
    "Wait until all pictures in the page are those that belong to the choices."
    explorer.update(**choices)
    wanted, deadline = {name: pixels(explorer[name]) for name in PICTURES}, time.monotonic() + PATIENCE
    while True:
        off = {name: difference(shown(page, name), picture) for name, picture in wanted.items()}
        if max(off.values()) < 0.5: return
        assert time.monotonic() < deadline, (off, page.locator(".fwi-status").inner_text())
        page.wait_for_timeout(100)


def sources(page) -> dict[str, str]:
    return {name: page.locator(f".fwi-{name}").get_attribute("src") for name in PICTURES}


def changed(page, before: dict) -> set[str]:
    after = sources(page)
    return {name for name in PICTURES if after[name] != before[name]}


def handle(page, name: str): return page.locator(f".fwi-{name} .noUi-handle")


def test_the_page_shows_the_pictures_of_the_model(page, explorer):
    becomes(page, explorer)
    for name in PICTURES:
        picture = shown(page, name)
        assert picture.std() > 20 and (picture < 250).mean() > 0.05  # not blank
    assert "made from the truth" in page.locator(".fwi-explorer").inner_text()


def test_the_profile_moves_and_nothing_else_does(page, explorer):
    before = sources(page)
    for key in ("ArrowLeft",) * 5: handle(page, "x").press(key)
    becomes(page, explorer, x=explorer["x"] - 50)
    assert changed(page, before) == {"maps", "profile"}


def test_a_slider_moved_fast_leaves_no_queue(page, explorer):
    page.evaluate("""() => { window.drawn = 0; new MutationObserver(all => window.drawn += all.length).observe(
        document.querySelector('.fwi-profile'), {attributeFilter: ['src']}) }""")
    handle(page, "x").focus()
    for key in ("ArrowRight",) * 30: page.keyboard.press(key)
    becomes(page, explorer, x=explorer["x"] + 300)
    assert 0 < page.evaluate("window.drawn") < 30


def test_the_number_of_network_calls_changes_the_maps(page, explorer):
    before = sources(page)
    page.locator(".fwi-nfe input").fill("2")
    page.locator(".fwi-nfe input").press("Enter")
    becomes(page, explorer, nfe=2, call=2)  # there is no third call any more
    assert changed(page, before) == set(PICTURES)


def test_what_cannot_be_is_one_sentence_and_the_pictures_stay(page, explorer):
    before = sources(page)
    page.locator(".fwi-nfe input").fill("1000")
    page.locator(".fwi-nfe input").press("Enter")
    page.locator(".fwi-status", has_text="(got 1000)").wait_for()
    assert changed(page, before) == set()
    page.locator(".fwi-nfe input").fill("3")
    page.locator(".fwi-nfe input").press("Enter")
    becomes(page, explorer, nfe=3)
    assert page.locator(".fwi-status").inner_text().strip() == ""


def test_another_record_and_another_start(page, explorer):
    handle(page, "record").press("ArrowRight")
    becomes(page, explorer, record=1)
    page.locator(".fwi-start select").select_option("linear, two velocities")
    becomes(page, explorer, start="linear:1500:4000")
    assert page.locator(".fwi-bottom").is_visible() and not page.locator(".fwi-width").is_visible()
    assert "another kind" in page.locator(".fwi-explorer").inner_text()


def test_the_shot_changes_the_gather_alone(page, explorer):
    before = sources(page)
    handle(page, "shot").press("ArrowRight")
    becomes(page, explorer, shot=3)
    assert changed(page, before) == {"gather"}


def test_neither_the_page_nor_the_cell_reported_an_error(page, tmp_path_factory):
    page.screenshot(path=tmp_path_factory.getbasetemp() / "explorer.png")
    assert page.faults == []
    assert page.locator(
        ".jp-OutputArea-output[data-mime-type*='error'], .jp-OutputArea-output[data-mime-type*='stderr']").count() == 0


def test_tensorboard_shows_losses_learning_rate_metrics_and_validation_maps(browser, mini):
    with tensorboard(browser, mini.parent) as page:
        titles = " ".join(page.locator("card-view").all_inner_texts())
        for word in ("loss", "lr", "mae", "ssim"): assert word in titles
        assert page.locator("card-view img").evaluate("image => image.naturalWidth") > 200
