"""Every study runs at the scale of seconds, and each row has what a reader needs beside it."""

import importlib
import json
import pathlib
import pkgutil

import pytest

from jaxleak.experiments import studies
from jaxleak.experiments.studies import agic_fig_9
from jaxleak.experiments.studies.support import study

WEIGHTS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "weights"
NAMES = [module.name for module in pkgutil.iter_modules(studies.__path__) if not module.ispkg]
# Those of the AGIC and IGIMS papers on FedAvg; what the others print is tested beside them.
FEDAVG = ("agic_table_i", "agic_table_ii", "agic_table_iii", "agic_fig_8", "agic_fig_9", "igims_fig_7", "approximation")


@pytest.mark.parametrize("name", NAMES)
def test_a_study_says_what_it_is_for_and_how_it_is_run(name):
    module = importlib.import_module(f"jaxleak.experiments.studies.{name}")
    for part in (f"Command: python -m jaxleak.experiments.studies.{name}", "Time: ", "Expect: "):
        assert part in module.__doc__
    assert set(module.SCALES) == {"seconds", "minutes", "paper"}


@pytest.mark.parametrize("name", FEDAVG)
def test_a_study_runs(name, tmp_path, capsys):
    module = importlib.import_module(f"jaxleak.experiments.studies.{name}")
    options = getattr(module, "Options", study.Options)(scale="seconds", out=tmp_path)
    rows = module.main(options)
    kept = [json.loads(line) for line in (tmp_path / f"{name}-seconds.jsonl").read_text().splitlines()]
    assert kept == json.loads(json.dumps(rows))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(rows) > 1
    for row, line in zip(rows, printed, strict=True):
        assert {"study", "scale", "commit", "date", "device", "settings", "num_steps", "seconds"} <= set(row)
        assert str(row["psnr_median"]) in line
        if name != "approximation":
            assert "; paper: " in line
            assert row["paper"]["psnr"]
    if name == "approximation":
        assert (tmp_path / "approximation-seconds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no folder {WEIGHTS}")
def test_the_steepness_of_weights_is_measured_on_a_trained_network_too(tmp_path):
    options = agic_fig_9.Options(scale="seconds", out=tmp_path, weights_dir=WEIGHTS)
    rows = agic_fig_9.main(options)
    assert {row["model"] for row in rows} == {"lenet", "resnet20, trained"}
