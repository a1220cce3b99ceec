"""`jaxleak reproduce`: every study listed, run and on the page, and the page is that of the rows."""

import json
import pathlib

import pytest

from jaxleak import citations
from jaxleak.experiments import cli
from jaxleak.experiments.reproduce import catalogue, comparing
from jaxleak.experiments.studies.support import comparison
from jaxleak.experiments.studies.support.comparison import Comparison

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "RESULTS.md").read_text()
NAMES = catalogue.names()


def part(name):
    return next(part for part in PAGE.split("\n## ") if part.startswith(f"{name}\n"))


def test_the_page_is_what_the_rows_make():
    assert comparing.page(catalogue.RESULTS) == PAGE, "jaxleak reproduce --page RESULTS.md"


def test_the_readme_leads_to_the_page():
    assert "](RESULTS.md)" in (ROOT / "README.md").read_text()


def test_no_file_of_rows_is_left_out():
    known = {f"{catalogue.load(name).file}-{scale}.jsonl" for name in NAMES for scale in catalogue.SCALES}
    assert {path.name for path in catalogue.RESULTS.glob("*.jsonl")} <= known


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_on_the_page_with_its_paper(name):
    own = catalogue.load(name).comparison
    assert own.artefact in part(name)
    assert f"[`{name}`](#{name})" in PAGE
    assert own.paper in (*citations.entries(), "")


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_judged_by_whatever_rows_there_are(name):
    study = catalogue.load(name)
    _, rows = catalogue.largest(study, catalogue.RESULTS)
    for some in (rows[:1], rows[::2], rows[1::2], rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        for claim, holds in study.comparison.judge(some):
            assert claim
            assert holds in (True, False, None)
        comparison.table(study.comparison, some)


def test_orders_are_those_of_the_figures_in_the_rows():
    """Some claims, worked out here from the files."""

    def read(file):
        return [json.loads(line) for line in (catalogue.RESULTS / file).read_text().splitlines()]

    accuracy = {
        row["settings"]["defense"]: row["accuracy"]
        for row in read("survey_table_i-minutes.jsonl")
        if row["dataset"] == "mnist" and row["settings"]["defended"] != "parameters"
    }
    order = [accuracy[name] for name in ("none", "gaussian_noise:variance=0.1", "laplacian_noise:variance=0.1")]
    assert order == sorted(order, reverse=True)
    claim = "mnist: no defense is above Gaussian noise on the steps, and that above Laplacian noise: holds"
    assert claim in part("survey_table_i")
    psnr = [row["psnr_median"] for row in read("agic_fig_9-minutes.jsonl") if row["settings"]["relu_modifier"]]
    assert psnr != sorted(psnr)
    assert "with the modifier for ReLUs: PSNR rises with beta: **does not hold**" in part("agic_fig_9")


@pytest.mark.parametrize(
    ("values", "holds"),
    [((1, 2, 2), True), ((1, 3, 2), False), ((1, None), None), ((2, 1.6), False), ((2, 1.6, 1.2), False)],
)
def test_ascending(values, holds):
    assert comparison.ascending(*values) is holds
    if holds is False and len(values) == 2:
        assert comparison.ascending(*values, slack=0.5) is True


def test_a_table_shows_what_rows_have():
    own = Comparison("x", "", "x.", {"a": "a", "deep": "s.t", "none": "n", "own": lambda row: row["a"] > 0})
    rows = [{"a": -0.00001, "s": {"t": [1.0, 2.5]}}, {"a": 123456.0, "s": {"t": "x|y"}}, {"a": -0.0, "s": {}}]
    assert comparison.table(own, rows).splitlines() == [
        "| a | deep | own |",
        "| --- | --- | --- |",
        "| -1e-05 | 1 to 2.5 | no |",
        "| 1.235e+05 | x\\|y | yes |",
        "| 0 | - | no |",
    ]


def test_the_list_names_every_study_its_scales_and_its_last_result(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["reproduce"]) == 0
    shown = capsys.readouterr().out
    for name in NAMES:
        line = next(line for line in shown.splitlines() if f" {name} " in line)
        assert "seconds, minutes, paper" in line
        scale, rows = catalogue.largest(catalogue.load(name), catalogue.RESULTS)
        assert (f"{scale}, {max(row['date'][:10] for row in rows)}, {len(rows)} rows" if rows else "none") in line


def test_it_runs_a_study_and_lists_what_that_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out = tmp_path / "results"
    options = ["--scale", "seconds", "--out", str(out), "--set", "attack=idlg", "only=none"]
    assert cli.main(["reproduce", "leakage_grid", *options]) == 0
    rows = [json.loads(line) for line in (out / "leakage_grid-seconds.jsonl").read_text().splitlines()]
    assert {row["attack"] for row in rows} == {"idlg"}
    assert {row["defense"] for row in rows} == {"none"}
    capsys.readouterr()
    assert cli.main(["reproduce", "--out", str(out)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " leakage_grid " in line)
    assert "seconds, 20" in line
    page = tmp_path / "page.md"
    assert cli.main(["reproduce", "--out", str(out), "--page", str(page)]) == 0
    assert "Scale seconds" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["dlg_lenett"], "unknown study 'dlg_lenett'"),
        (["dlg_lenet", "--scale", "hours"], "unknown scale 'hours'"),
        (["leakage_grid", "--set", "colour=red"], "set='colour=red': expected NAME=VALUE of data, only, attack"),
        (["leakage_grid", "--set", "attack"], "set='attack': expected NAME=VALUE of "),
        (["dlg_lenet", "--set", "attack=idlg"], "expected NAME=VALUE of a study that has options"),
        (["--set", "attack=idlg"], "set=attack=idlg: expected a study"),
        (["dlg_lenet", "--page", "x.md"], "page='x.md': expected no study beside it"),
    ],
)
def test_what_does_not_fit_is_refused(flags, said, capsys):
    assert cli.main(["reproduce", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"date": "2026\n', "[1]\n", '{"attack": "idlg"}\n', "[" * 100_000 + "\n"])
def test_a_damaged_file_of_rows_is_named(tmp_path, capsys, content):
    (tmp_path / "dlg_lenet-minutes.jsonl").write_text(content)
    assert cli.main(["reproduce", "--out", str(tmp_path)]) == 2
    assert "dlg_lenet-minutes.jsonl: not the rows of a study" in capsys.readouterr().err
