"""The documentation's screenshots from a real run: `make pictures` writes them into nbs/images.

Trains for a few hundred steps on a small data set made here, then shows the run in TensorBoard and in the explorer."""
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from chromium import ROOT, chromium, lab, new_page, run_cells, service, tensorboard
from PIL import Image
from playwright.sync_api import Browser, Page

from fwi_i2sb.data.generate import generate
from fwi_i2sb.examples import mini_options
from fwi_i2sb.train import train

IMAGES = ROOT / "nbs" / "images"


def trained(folder: Path) -> Path:
    "The mini run, for longer and on more records."
    options = mini_options(folder,
        generate(folder / "data", "CurveVel_A", n_train=400, n_val=16, layers=(4, 8), shard_size=100))
    longer = replace(options, run=replace(options.run, name="small"),
        optim=replace(options.optim, num_itr=500, warmup=50, ema=0.99),
        log=replace(options.log, log_every=10, val_every=50))
    return train(longer)


def keep(page: Page, name: str):
    "Store what a page shows."
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(IMAGES / f"{name}.png", optimize=True)


def explorer(browser: Browser, run: Path, folder: Path):
    "The explorer in JupyterLab."
    with lab(folder, f"from fwi_i2sb.inference.widget import explore\nexplore('runs/{run.name}', dpi=80)") as address:
        page = new_page(browser, 1250, 1140)
        run_cells(page, address)
        page.wait_for_function("document.querySelectorAll('.fwi-explorer img').length == 4")
        page.keyboard.press("Control+b")  # the file browser closes
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
        keep(page, "explorer")


def page_of_service(browser: Browser, runs: Path):
    "An example of the pipeline that comes with the package, inverted on the page of the service."
    with service(runs, "key-of-the-picture") as address:
        page = new_page(browser, 1400, 1160)
        page.goto(address)
        page.locator("#key").fill("key-of-the-picture")
        page.locator("#model").select_option("curvevel-a")
        page.locator("#model-hint", has_text="A pipeline").wait_for()
        page.get_by_role("button", name="Invert").click()
        page.locator("#status", has_text="Done").wait_for()
        keep(page, "page")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        run = trained(Path(name))
        with chromium() as browser:
            with tensorboard(browser, run.parent) as page: keep(page, "tensorboard")
            explorer(browser, run, Path(name))
            page_of_service(browser, run.parent)
