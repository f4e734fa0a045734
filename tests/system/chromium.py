"A headless Chromium, and JupyterLab as `make lab` starts it, for the tests and the pictures of the documentation."
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds, for what a loaded machine may take


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(words: list, address: str, **env: str):
    "Run a command until the end of the block; the block begins when the address answers."
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, env=os.environ | env, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, f"{words[0]} ended with exit code {process.returncode}"
            assert time.monotonic() < deadline, f"{address} does not answer"
            try: urllib.request.urlopen(address, timeout=10).close()
            except OSError: time.sleep(0.2)
            else: break
        yield
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGTERM)
        process.wait(600)


@contextlib.contextmanager
def chromium():
    "A headless Chromium."
    with sync_playwright() as playwright:
        # no sandbox: root
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try: yield browser
        finally: browser.close()


def new_page(browser: Browser, width: int, height: int) -> Page:
    page = browser.new_page(viewport=dict(width=width, height=height))
    page.set_default_timeout(1000 * PATIENCE)
    return page


@contextlib.contextmanager
def lab(folder: Path, code: str):
    "Make a notebook of one cell in a folder, and show it in JupyterLab; yields its address."
    kernel = dict(name="python3", display_name="Python 3", language="python")
    cell = dict(id="one", cell_type="code", source=code, metadata={}, outputs=[], execution_count=None)
    (folder / "notebook.ipynb").write_text(json.dumps(dict(nbformat=4, nbformat_minor=5,
        metadata=dict(kernelspec=kernel), cells=[cell])))
    home, port = folder / ".home", free_port()
    news = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # no question over a corner of the page
    options = f"--no-browser --allow-root --port {port} --ServerApp.port_retries=0 --IdentityProvider.token=test"
    words = ["make", "--assume-old", f"{sys.prefix}/installed", "lab", f"VENV={sys.prefix}", f"LAB={folder}",
        f"LAB_ARGS={options}"]
    with server(words, f"http://127.0.0.1:{port}/api", JUPYTER_CONFIG_DIR=str(home),
            JUPYTER_RUNTIME_DIR=str(home / "runtime"), IPYTHONDIR=str(home / "ipython")):
        yield f"http://127.0.0.1:{port}/lab/tree/notebook.ipynb?token=test"


@contextlib.contextmanager
def tensorboard(browser: Browser, runs: Path):
    "A page of TensorBoard on a folder of runs: losses, learning rate, metrics and validation maps."
    port = free_port()
    words = [Path(sys.executable).parent / "tensorboard", "--logdir", runs, "--port", port]
    with server(words, f"http://127.0.0.1:{port}/data/environment"):
        page = new_page(browser, 1400, 860)
        page.goto(f"http://127.0.0.1:{port}/#timeseries")
        page.get_by_role("combobox", name="Filter tags (regex)").fill("(loss|lr|mae|rmse|ssim)$|valid|maps")
        page.get_by_text("Enable step selection and data table").click()
        page.get_by_label("Toggle settings side pane").click()
        page.wait_for_function("document.querySelectorAll('card-view').length >= 6 && "
            "[...document.querySelectorAll('card-view img')].some(image => image.naturalWidth)")
        page.wait_for_load_state("networkidle")
        yield page


@contextlib.contextmanager
def service(runs: Path, key: str):
    "A service of some runs and of the pipeline that comes with the package; its address."
    port = free_port()
    words = [sys.executable, "-m", "fwi_i2sb", "serve", runs, "--hub", "curvevel-a", "--port", port, "--device", "cpu"]
    with server(words, f"http://127.0.0.1:{port}/ready", SECRET_API_KEY=key): yield f"http://127.0.0.1:{port}/"


def run_cells(page: Page, address: str):
    "Open a notebook and run it, by the menu."
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('[data-command="runmenu:run-all"]').click()
