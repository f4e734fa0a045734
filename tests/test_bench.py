"The benchmark as a command: what it writes, what it refuses, and that a wrong answer is never called fast."
import json
import re
from pathlib import Path

import pytest
import torch

from fwi_i2sb.bench import __main__ as bench
from fwi_i2sb.bench import network as bench_net
from fwi_i2sb.bench.data import smoothing
from fwi_i2sb.bench.timing import compare, Setting, trial

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(capsys):
    "Run the command here; returns exit code, output and errors."
    def run(*words):
        try: bench.main([str(word) for word in words])
        except SystemExit as stop: code = stop.code or 0
        else: code = 0
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def quick(monkeypatch):
    "The groups with one quick case each."
    monkeypatch.setattr(bench, "CASES", {"sample": bench.CASES["sample"][:1], "wave": (smoothing,)})


def test_the_report_holds_machine_rounds_and_every_measurement(command, quick, tmp_path):
    code, out, _ = command("all", "--rounds", 3, "--json", tmp_path / "bench.json")
    report = json.loads((tmp_path / "bench.json").read_text())
    assert code == 0 and set(report) == {"machine", "load_after", "rounds", "seconds", "results"}
    assert set(report["machine"]) == {"device", "name", "cores", "torch", "python", "load"} and report["rounds"] == 3
    calls, blur = report["results"]
    assert calls["verdict"] == "met" and calls["ours"] == [5] and calls["unit"] == "calls"
    assert (len(blur["plain"]) == len(blur["ours"]) == 3 and min(blur["plain"]) > 0
        and blur["check"].startswith("outputs differ by"))
    assert (blur["ratio"] == pytest.approx(sorted(blur["plain"])[1] / sorted(blur["ours"])[1])
        and blur["verdict"] == "too few rounds")
    for result in report["results"]:
        assert re.search(rf"^{re.escape(result['name'])} .*{result['verdict']}$", out, re.M)


def test_every_target_of_the_project_has_its_case():
    names = {case.__name__ for cases in bench.CASES.values() for case in cases}
    assert {"conversion", "store_size", "reading", "resolution", "half_precision", "attention_block", "optimiser",
        "smoothing", "validation", "solver"} <= names


@pytest.mark.parametrize("words, saying", [
    (["stap"], "did you mean 'step'"),
    (["all", "stap"], "did you mean 'step'"),
    (["wave", "--rounds", "0"], "--rounds must be 1 or more (got 0)"),
    (["wave", "--json", "/dev/null/all.json"], "results cannot be written to /dev/null: /dev/null is a file"),
    (["wave", "--device", "cuda"], "no CUDA device"),
    (["data", "--against", "/nowhere"], "no fwi_i2sb with a store is in it; name a checkout"),
    (["wave", "--against", "."], "--against has no effect without data"),
])
def test_bad_input_is_one_sentence(command, words, saying):
    if "cuda" in words and torch.cuda.is_available(): pytest.skip("there is a CUDA device")
    code, out, err = command(*words)
    assert code == 2 and not out and saying in err and len(err.strip().splitlines()) == 1


def test_another_version_is_compared_in_turn(command, monkeypatch, tmp_path):
    monkeypatch.setitem(bench.CASES, "data", ())
    code, out, _ = command("data", "--against", ROOT, "--rounds", 2, "--json", tmp_path / "bench.json")
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert [result["name"].split(",")[0] for result in results] == [
        "data: convert 100", "data: read 90", "data: convert 500"]
    for result in results:
        assert len(result["plain"]) == len(result["ours"]) == 2 and result["check"] == "equal values"
        assert 0 < min(result["plain"]) and result["target"] == pytest.approx(1 / 1.1)
    assert code == 0 and "data: convert 500, another version and this, per record" in out


@pytest.mark.parametrize("store, saying", [
    ("raise ImportError('it needs a wheel')", "cannot be compared: ImportError: it needs a wheel"),
    ("def convert(*asked, **named): raise SystemExit(3)", "cannot be compared: it ended without a word"),
])
def test_a_version_that_fails_is_said(command, monkeypatch, tmp_path, store, saying):
    monkeypatch.setitem(bench.CASES, "data", ())
    (tmp_path / "fwi_i2sb" / "data").mkdir(parents=True)
    for folder in ("fwi_i2sb", "fwi_i2sb/data"): (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "fwi_i2sb" / "data" / "store.py").write_text(store)
    code, out, err = command("data", "--against", tmp_path)
    assert code == 2 and saying in err and len(err.strip().splitlines()) == 1


def test_a_wrong_output_is_not_timed_and_fails_the_run(command, monkeypatch, tmp_path):
    def forgetful(setting):
        x = torch.ones(3)
        return trial(setting, "half the work", lambda: x + x, lambda: x,
            check=lambda: compare(x + x, x, within=1e-6), target=1)
    monkeypatch.setattr(bench, "CASES", {"wave": (forgetful,)})
    code, out, _ = command("wave", "--json", tmp_path / "bench.json")
    result = json.loads((tmp_path / "bench.json").read_text())["results"][0]
    assert code == 1 and "wrong output: the outputs differ" in out
    assert result["verdict"] == "wrong output" and result["ratio"] is None and not result["plain"]


def test_one_kernel_twice_is_not_a_comparison(monkeypatch):
    monkeypatch.setattr(bench_net, "SDPBackend",
        type("Twice", (), dict(MATH=bench_net.SDPBackend.MATH, FLASH_ATTENTION=bench_net.SDPBackend.MATH)))
    block = bench_net._network(Setting(), "unet_ch16").unet.bottom[0].attention
    result = bench_net._attention(Setting(rounds=1), "twice", block, torch.randn(1, 64, 8, 8))
    assert result.stopped == "wrong output: the outputs are equal bit by bit: the same kernel ran twice"
