"The pipelines that come with the package: their size, their card, and what the card promises."
import re
from pathlib import Path

import pytest

from fwi_i2sb import load_run
from fwi_i2sb.data.geology import sample_velocity
from fwi_i2sb.hub import read_index, shipped
from fwi_i2sb.metrics.accuracy import mae
from fwi_i2sb.physics.wave import simulate

NEW = 20_261  # a seed that no training and no card has used


def scores(folder: Path) -> dict[str, dict[str, float]]:
    "The table of a model card: numbers by answer and column."
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in
        (folder / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    number = lambda cell: float(cell) if cell else None
    return {line[1]: dict(zip(lines[0][2:], map(number, line[2:]))) for line in lines[2:]}


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_are_small_and_the_card_says_what_they_are(name):
    folder = shipped()[name]
    index = read_index(folder)
    assert index["name"] == name and all(about["bytes"] <= 5_000_000 for about in index["files"].values())
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("Training records", "part", "Cost of the training", "Licence", "Limits"): assert word in card
    assert not re.search(r"/(root|home|work|tmp)/", "".join(p.read_text() for p in folder.rglob("*.json")) + card)


@pytest.mark.parametrize("name", shipped())
def test_new_records_are_inverted_as_well_as_the_card_says(name):
    run, promised = load_run(f"hub:{name}", device="cpu"), scores(shipped()[name])
    maps = sample_velocity(run.spec.family, 20, seed=NEW, shape=run.spec.map_size, scale=run.scale)
    seismic = simulate(maps, run.survey)
    answer = run.invert(seismic, refine=0)
    method = run.method.name
    for found, row in ((answer.start, "starting model"), (answer.mean, f"{method}, not refined")):
        assert abs(mae(found, maps).mean() / promised[row]["mae"] - 1) < 0.2
    # what waves make of them: the demo of tests/test_readme.py


def test_the_shipped_pipeline_is_there(): assert "curvevel-a" in shipped()


def test_the_readme_shows_the_numbers_of_the_card():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in
        (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").splitlines()]
    first = next(place for place, line in enumerate(lines) if line[:3] == ["stage", "MAE", "RMSE"])
    card = scores(shipped()["curvevel-a"])
    answers = "starting model", "bridge, not refined", "bridge", "bridge, recalibrated"
    for line, answer in zip(lines[first + 2:], answers, strict=False):
        columns = dict(zip(("mae", "rmse", "ssim", "crps", "misfit", "coverage_50", "coverage_90"), line[1:8]))
        for name, shown in columns.items():
            if name == "misfit": continue  # the median here, the mean there
            value, unit = card[answer][name], {"ssim": 1e-3, "coverage_50": 1e-2, "coverage_90": 1e-2}.get(name, 1.0)
            if value is None: assert not shown, (answer, name)
            else:
                number = float(shown.removesuffix(" %")) * (1e-2 if shown.endswith("%") else 1)
                assert abs(number - value) <= unit / 2 + 5e-4 * value, (answer, name)  # the card has four digits
