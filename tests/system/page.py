"The page of the service in a headless Chromium: an example is inverted, what is wrong is said."
import base64
import re
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import chromium, new_page, service
from PIL import Image

KEY = "secret-of-tests"
FIGURES = "truth", "map", "std", "observed", "again", "rest"


@pytest.fixture(scope="module")
def page(mini):
    "The page of a service of the mini run and of the pipeline that comes with the package."
    with chromium() as browser, service(mini.parent, KEY) as address:
        page = new_page(browser, 1400, 1150)
        page.faults, page.places = [], set()
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and page.faults.append(said.text))
        page.on("request", lambda request: page.places.add(urlsplit(request.url).netloc))
        page.goto(address)
        page.locator("#model option", has_text="mini").wait_for(state="attached")
        yield page
        # whatever was shown came from the service, and of what the browser complains are refusals that were meant
        assert {place for place in page.places if place} == {urlsplit(address).netloc}
        assert [fault for fault in page.faults if "status of 4" not in fault] == []


def invert(page, **settings):
    for name, value in settings.items(): page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Invert").click()
    page.locator("#go:enabled").wait_for()


def refusal(page) -> str:
    invert(page)
    return page.locator("#error").inner_text()


def drawn(page, name: str) -> np.ndarray:
    "The colours of what a canvas shows, without its frame and labels."
    png = page.locator(f"#{name} canvas").evaluate("canvas => canvas.toDataURL('image/png').split(',')[1]")
    return np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB"), dtype=float)[20:-60, 80:-100]


def test_a_key_is_needed(page):
    assert refusal(page) == ""  # the form is not sent
    assert page.locator("#key").evaluate("field => field.validity.valueMissing")
    page.locator("#key").fill("wrong")
    assert "X-API-Key" in refusal(page)
    page.locator("#key").fill(KEY)


def test_an_example_is_inverted_and_everything_is_shown(page, tmp_path_factory):
    page.locator("#model").select_option("curvevel-a")
    page.locator("#model-hint", has_text="A pipeline for 5 shots × 1000 samples of 1 ms × 70 receivers").wait_for()
    page.get_by_text("Settings", exact=True).click()
    invert(page, samples=2, nfe=2, refine=1)
    assert not page.locator("#error").is_visible(), page.locator("#error").inner_text()
    for name in FIGURES:
        pixels = drawn(page, name)
        assert pixels.std() > 5 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 4, name
    assert "rusted" in page.locator("#trust").inner_text()
    assert "mean absolute error" in page.locator("#map").inner_text()
    assert page.locator("#progress").is_hidden()
    page.screenshot(path=tmp_path_factory.getbasetemp() / "page.png", full_page=True)


def test_values_are_read_by_mouse_and_by_keys_and_shots_are_chosen(page):
    canvas = page.locator("#map canvas")
    canvas.hover(position=dict(x=150, y=60))
    said = page.locator("#map output").inner_text()
    assert said.startswith("x ") and "depth" in said and said.endswith("m/s")
    canvas.press("ArrowDown")
    assert page.locator("#map output").inner_text() != said
    before = drawn(page, "observed")
    page.locator("#shot").press("ArrowLeft")
    assert "2 of 5" in page.locator("#shot-place").inner_text()
    assert np.abs(drawn(page, "observed") - before).max() > 20


def test_a_batch_of_an_own_file_is_shown_record_by_record(page, data, tmp_path):
    records = np.load(data / "data" / "data49.npy", mmap_mode="r")[:2]
    np.savez(tmp_path / "two.npz", seismic=records[:, :, ::2])
    page.locator("#model").select_option("mini")
    page.locator("#model-hint", has_text="A run for").wait_for()
    page.locator("#file").set_input_files(tmp_path / "two.npz")
    invert(page, refine="")
    assert "interpolated" in page.locator("#warnings").inner_text() and page.locator("#truth").is_hidden()
    first = drawn(page, "observed")
    page.locator("#record").fill("1")
    assert np.abs(drawn(page, "observed") - first).max() > 20
    with page.expect_download() as answer: page.get_by_role("link", name="Download").click()
    with np.load(answer.value.path()) as file: assert file["map"].shape == (2, 70, 70)


def test_a_wrong_file_is_one_sentence_and_the_answer_before_stays(page, tmp_path):
    before = drawn(page, "map")
    for content, said in ((b"hello", "the body is no .npy file"), (b"PK", "no .npz archive")):
        (tmp_path / "wrong.npy").write_bytes(content)
        page.locator("#file").set_input_files(tmp_path / "wrong.npy")
        assert said in refusal(page)
    np.save(tmp_path / "wrong.npy", np.zeros((4, 1000, 70), np.float32))
    page.locator("#file").set_input_files(tmp_path / "wrong.npy")
    assert "4 shots" in refusal(page)
    np.testing.assert_array_equal(drawn(page, "map"), before)


def test_the_form_as_it_was_sent_is_answered_though_the_service_is_slow_and_it_is_changed(page):
    held = []
    slow = re.compile(r"/api/v1/models/[^/]+(/example.*)?$")
    page.route(slow, lambda route: route.continue_() if held is None else held.append(route))
    page.locator("#model").select_option("curvevel-a")
    page.locator("#model").select_option("mini")
    page.locator("input[value=example]").check()
    page.locator("#number").fill("1")
    with page.expect_request("**/models/mini/example?number=1&part=record"):
        page.get_by_role("button", name="Invert").click()
    for name, value in (("number", "0"), ("samples", "3")): page.locator(f"#{name}").fill(value)
    page.locator("#model").select_option("curvevel-a")
    page.wait_for_timeout(1000)
    assert page.locator("#model-hint").inner_text() == "" and not page.locator("#error").is_visible()
    late, held = held, None
    with page.expect_request("**/models/mini/example?number=1&part=map"):
        for route in late: route.continue_()
    page.locator("#go:enabled").wait_for()
    assert not page.locator("#error").is_visible(), page.locator("#error").inner_text()
    page.get_by_text("How it was made").click()
    about = page.locator("#about").inner_text()
    assert "model\nmini" in about and "samples\n2" in about, about
    page.locator("#model-hint", has_text="A pipeline").wait_for()
    page.unroute(slow)


def test_what_is_given_up_ends(page):
    page.locator("#model").select_option("curvevel-a")
    page.locator("#model-hint", has_text="A pipeline").wait_for()
    page.locator("input[value=example]").check()
    page.locator("#samples").fill("")
    page.get_by_role("button", name="Invert").click()
    page.locator("#progress").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#status", has_text="Stopped").wait_for()
    assert page.locator("#go").is_enabled()


def test_a_request_of_the_documentation_is_answered(page):
    page.goto(page.url + "docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".modal-ux input").fill(KEY)
    page.locator(".modal-ux button.authorize").click()
    page.locator(".modal-ux button.btn-done").click()
    operation = page.locator(".opblock-post", has_text="/api/v1/predict/{name}")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("name").fill("mini")
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table tbody")
    answer.wait_for()
    assert answer.locator(".response-col_status").inner_text().startswith("200"), answer.inner_text()
    assert '"model_name": "mini"' in answer.locator("pre").first.inner_text()
