"""The benchmark of a sweep leaves a row with what its page needs."""

import json

from jaxleak.benchmarks import rows, sweeping

STUDY = """
attack = [{name = "dlg_adam", num_steps = 2}]
defense = ["none", "prune"]
images = 2
seeds = 2
"""


def test_a_sweep_is_timed_beside_pytorch_where_there_is_one(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    options = sweeping.Options(study=tmp_path / "study.toml", repeats=1, steps=2, out=tmp_path / "rows.jsonl")
    row = sweeping.main(options)
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert (row["cells"], row["reconstructions"], row["programs"]) == (2, 8, 1)
    assert 0 < row["seconds_of_cells"]["dlg_adam"] < row["seconds"]
    if rows.why_no_torch() is None:
        step = sum(row["torch_seconds_a_step"]["dlg_adam"]) / 2
        assert abs(row["torch_seconds"]["median"] - 16 * step) < 0.1
    else:
        assert row["torch"]


def test_the_study_has_the_reconstructions_that_the_page_states():
    study = sweeping.studies.load(sweeping.STUDY)
    assert study.num_cells * study.images * study.seeds == 3456
