"Experiment notebooks: the example grids fit them, and the same seed gives the same numbers."
import json
from pathlib import Path

import pytest
import yaml

from fwi_i2sb.sweeps.runner import experiment_command, ExperimentOptions
from fwi_i2sb.sweeps.grid import read_grid

EXPERIMENTS = Path(__file__).parents[1] / "nbs" / "experiments"


@pytest.mark.parametrize("grid", sorted((EXPERIMENTS / "grids").glob("*.yaml")), ids=lambda p: p.stem)
def test_example_grids_fit_their_notebooks(grid):
    assert len(read_grid(grid).cells) > 1


@pytest.mark.parametrize("notebook", sorted(EXPERIMENTS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_experiment_can_be_a_cell_of_a_grid(notebook, tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(dict(notebook=str(notebook), out="results")))
    assert len(read_grid(tmp_path / "grid.yaml").cells) == 1


def assert_result_of(path, given):
    stored = json.loads(path.read_text())
    told = stored | stored.get("about", {}) | {"records": max(row.get("records", 0) for row in stored["rows"])}
    assert all(told[name] == given[name] for name in ("records", "steps") if name in given)
    assert not [text for text in path.read_text().split('"') if text.startswith(("/", "~"))], "no paths of a machine"
    return stored


@pytest.mark.parametrize("result", sorted((EXPERIMENTS / "results").glob("*.json")), ids=lambda p: p.stem)
def test_a_stored_result_is_that_of_the_parameters_beside_it(result):
    assert_result_of(result, yaml.safe_load(result.with_suffix(".yaml").read_text()))


@pytest.mark.parametrize("result", sorted((EXPERIMENTS / "grids").glob("*/*.json")), ids=lambda p: p.stem)
def test_a_stored_cell_is_that_of_its_grid(result):
    given = {cell.name: cell.parameters for cell in read_grid(result.parent.with_suffix(".yaml")).cells}[result.stem]
    stored = assert_result_of(result, given)
    assert {run["settings"]["seed"] for run in stored["about"]["runs"].values()} == {given["seed"]}


@pytest.mark.usefixtures("forked_cells")
def test_the_same_steps_and_seed_give_the_same_numbers(tmp_path):
    small = dict(methods=["bridge", "regression"], steps=dict(bridge=2, regression=2), records=2, points=1)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(dict(notebook=str(EXPERIMENTS / "30_methods.ipynb"),
            out=name, fixed=small)))
        experiment_command(ExperimentOptions(tmp_path / f"{name}.yaml"))
    first, second = ((json.loads((tmp_path / name / "single" / "metrics.json").read_text())["rows"]
        for name in ("a", "b")))
    for row in first + second: row.pop("seconds_per_record")
    assert first == second and {row["name"] for row in first} == {"start", "bridge", "regression"}
