"""The page of benchmark results says what the rows say."""

import json
import pathlib

import pytest

RESULTS = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results"
LINES = [
    [word.strip() for word in line.strip("| ").split(" | ")]
    for line in (RESULTS / "README.md").read_text().splitlines()
    if line.startswith("| ")
]


def rows(name, kind):
    return [row for row in map(json.loads, (RESULTS / name).read_text().splitlines()) if row["benchmark"] == kind]


def case(row):
    return [str(row[name]) for name in ("model", "batch_size", "lanes") if name in row]


def line(row, columns):
    (found,) = [words for words in LINES if words[: len(case(row))] == case(row) and len(words) == columns]
    return found


@pytest.mark.parametrize("row", rows("steps.jsonl", "step"), ids=lambda row: "-".join(case(row)))
def test_every_step_is_on_the_page(row):
    words = line(row, 13)
    assert words[3] == f"{row['jaxleak']['ms_a_lane_step']['median']:.4g}"
    assert words[7] == f"{row['times_as_fast_as_pytorch']['median']:.2f}"
    assert words[8] == f"{row['times_as_fast_as_eager_pytorch']['median']:.2f}"
    assert words[9] == f"{row['ratio_to_single']['median']:.2f}"
    assert words[12] == f"{row['bytes_to_estimate']:.2f}"
    assert {"commit", "date", "device", "versions", "load_average"} <= set(row)


@pytest.mark.parametrize("row", rows("convolutions.jsonl", "convolutions"), ids=lambda row: "-".join(case(row)))
def test_every_form_of_convolution_is_on_the_page(row):
    forms = [row[form] for form in ("native", "at_once", "by_axes")]
    assert line(row, 8)[2:5] == [f"{form['ms_a_lane_step']['median']:.4g}" for form in forms]


@pytest.mark.parametrize("row", rows("profile.jsonl", "profile"), ids=lambda row: "-".join(case(row)))
def test_every_profile_is_on_the_page(row):
    assert line(row, 6)[2:4] == [f"{row['ms_a_step']:.4g}", f"{100 * row['share_busy']:.0f} %"]


@pytest.mark.parametrize("row", rows("depth.jsonl", "depth"), ids=lambda row: str(row["depth"]))
def test_every_depth_is_on_the_page(row):
    ways = [row[way] for way in ("written_out", "scanned")]
    figures = [text for way in ways for text in (str(way["compile_seconds"]), f"{way['ms_a_step']['median']:.4g}")]
    assert [str(row["depth"]), *figures] in LINES


def test_no_line_of_the_tables_is_without_a_row():
    tables = [(f"{name}.jsonl", name) for name in ("convolutions", "profile", "depth")] + [("steps.jsonl", "step")]
    headings = len(tables)
    assert len(LINES) - headings == sum(len(rows(*table)) for table in tables)
