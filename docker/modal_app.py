"""The Speed & Structure challenge on Modal: analyse, train, resume, submit and fetch, each as it runs here.

    pip install 'fwi_i2sb[modal]'; modal setup
    modal volume put speed-structure-vol data/train train; modal volume put speed-structure-vol data/test test
    modal run docker/modal_app.py::analyse
    modal run docker/modal_app.py::train --options "--name speed --preset speed-structure"
    modal run docker/modal_app.py::resume --name speed
    modal run docker/modal_app.py::submit --name speed --options "--stamp step"
    modal run docker/modal_app.py::fetch --name submissions/speed-step-20000.npz --to submission.npz

Without Modal the same happens here: python docker/modal_app.py analyse, and so on, on the folder FWI_MODAL_MOUNT.
Names, GPU, time and secrets are settings: environment variables FWI_MODAL_..., see `Settings`.
"""
import contextlib, importlib.util, inspect, shlex, sys, warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fwi_i2sb.core.commands import exit_codes, parse
from fwi_i2sb.core.errors import InputError, unknown
from fwi_i2sb.core.files import atomic
from fwi_i2sb.core.progress import progress_bar
from fwi_i2sb.data.command import check_command, CheckOptions
from fwi_i2sb.data.speed_structure import CHALLENGE
from fwi_i2sb.data.store import convert
from fwi_i2sb.evaluation.submit import submit_command, SubmitOptions
from fwi_i2sb.train import train as train_run
from fwi_i2sb.training.options import TrainOptions
from fwi_i2sb.training.run_dir import read_config


class Settings(BaseSettings):
    "What is set by environment variables FWI_MODAL_APP, FWI_MODAL_VOLUME, FWI_MODAL_GPU and so on."
    model_config = SettingsConfigDict(env_prefix="FWI_MODAL_", env_ignore_empty=True)

    app: str = "fwi-i2sb"
    volume: str = "speed-structure-vol"  # with train/ and test/; runs/ and submissions/ are made in it
    mount: Path = Path("/vol")  # where it lies in a container; here: the folder in its place
    gpu: str = "A100"
    timeout: Annotated[int, Field(ge=60, le=86_400)] = 7200  # seconds of a training; Modal allows a day
    retries: Annotated[int, Field(ge=0, le=10)] = 3  # times that a training goes on after its time is over
    memory: Annotated[int, Field(ge=1024, le=344_064)] = 16_384  # MiB
    secrets: str = ""  # names of Modal secrets, separated by commas, e.g. one with WANDB_API_KEY


def read_settings() -> Settings:
    "The settings. Raises `InputError`, in one sentence, for a wrong one."
    try: return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"FWI_MODAL_{str(first['loc'][0]).upper()}: {first['msg']}") from None


with exit_codes() if __name__ == "__main__" else contextlib.nullcontext(): settings = read_settings()


def _below(name: str) -> Path:
    "A path on the volume. Raises `InputError` for one that leads out of it."
    root, path = settings.mount.resolve(), (settings.mount / name).resolve()
    if not path.is_relative_to(root): raise InputError(f"{name} leads out of the volume: name a file on it")
    return path


def analyse_here() -> str:
    "Report on the samples of the volume, and print it. Where they lie."
    check_command(CheckOptions(settings.mount))
    return str(settings.mount)


def train_here(options: str = "") -> str:
    "Train a run, or continue it: options as of `fwi-i2sb train`, without places. Its folder."
    with progress_bar("convert", "records") as progress: convert(settings.mount, CHALLENGE, progress=progress)
    given = parse(TrainOptions, ["--result-dir", str(settings.mount / "runs"), "--dataset-dir", str(settings.mount),
        "--dataset-name", CHALLENGE, *shlex.split(options)])
    train_run(given)
    return str(given.folder)


def resume_here(name: str) -> str:
    "Continue a run with the options that it has. Its folder."
    folder = _below(f"runs/{name}")
    options, _ = read_config(folder)
    options = replace(options, run=replace(options.run, result_dir=folder.parent, name=folder.name),
        data=replace(options.data, dataset_dir=settings.mount))
    train_run(options)
    return str(folder)


def submit_here(name: str, options: str = "") -> str:
    "Invert the test samples with a run: options as of `fwi-i2sb submit`. The submission's file."
    out = _below(f"submissions/{name}.npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    return str(submit_command(parse(SubmitOptions, [str(_below(f"runs/{name}")), str(settings.mount), "-o", str(out),
        *shlex.split(options)])))


def fetch_here(name: str) -> Iterator[bytes]:
    "A file of the volume, in pieces."
    path = _below(name)
    if not path.is_file(): raise InputError(f"there is no file {name} on the volume")
    with open(path, "rb") as file:
        while piece := file.read(2**22): yield piece


def save(pieces: Iterator[bytes], to: str) -> str:
    "Write a file completely or not at all, and no file over another one."
    if Path(to).exists(): raise InputError(f"{to} is there already: name another file")
    with atomic(Path(to)) as part, open(part, "wb") as file:
        for piece in pieces: file.write(piece)
    return to


if importlib.util.find_spec("modal") is None:
    app = None
    warnings.warn("modal is not installed, so everything runs on this machine: pip install 'fwi_i2sb[modal]' for the "
        "cloud", stacklevel=2)
else:
    import modal

    _root = Path(__file__).resolve().parents[1]
    app = modal.App(settings.app)
    volume = modal.Volume.from_name(settings.volume, create_if_missing=True)
    image = modal.Image.debian_slim(python_version="3.11").apt_install("g++")
    if modal.is_local():  # in a container the image is there
        image = image.add_local_dir(_root, "/opt/fwi_i2sb", copy=True, ignore=[".git", ".venv", "**/*.npz", "runs"])
    image = image.run_commands(
        "pip install --constraint /opt/fwi_i2sb/constraints.txt '/opt/fwi_i2sb[track,signal,modal]'")
    _place = dict(image=image, volumes={str(settings.mount): volume}, memory=settings.memory,
        secrets=[modal.Secret.from_name(name.strip()) for name in settings.secrets.split(",") if name.strip()])
    # what the settings were on the machine that starts a function holds in its container, too
    _place["env"] = {f"FWI_MODAL_{name.upper()}": str(value) for name, value in settings.model_dump().items()}
    _long = _place | dict(gpu=settings.gpu, timeout=settings.timeout)

    def _kept(found):
        "The same, when what was written is on the volume."
        if not modal.is_local(): volume.commit()
        return found

    @app.function(**_place, timeout=3600)
    def analyse() -> str: return analyse_here()

    @app.function(**_long, retries=settings.retries)
    def train(options: str = "") -> str: return _kept(train_here(options))

    @app.function(**_long, retries=settings.retries)
    def resume(name: str) -> str: return _kept(resume_here(name))

    @app.function(**_long)
    def submit(name: str, options: str = "") -> str: return _kept(submit_here(name, options))

    @app.function(**_place, timeout=3600)
    def pieces(name: str) -> Iterator[bytes]: yield from fetch_here(name)

    @app.local_entrypoint()
    def fetch(name: str, to: str): print(save(pieces.remote_gen(name), to))


HERE = dict(analyse=analyse_here, train=train_here, resume=resume_here, submit=submit_here,
    fetch=lambda name, to: print(save(fetch_here(name), to)))

if __name__ == "__main__":
    with exit_codes():
        name, *words = sys.argv[1:] or [""]
        if name not in HERE: raise unknown("function", name, HERE)
        try: inspect.signature(HERE[name]).bind(*words)
        except TypeError as error: raise InputError(f"{name}: {error}; see the head of {Path(__file__).name}") from None
        HERE[name](*words)
