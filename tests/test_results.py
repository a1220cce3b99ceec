"""The page of results says what the rows say."""

import json
import pathlib

import pytest

RESULTS = pathlib.Path(__file__).parent.parent / "experiments" / "results"
PAGE = (RESULTS / "README.md").read_text()
ROWS = [
    pytest.param(path.name, json.loads(line), id=f"{path.stem}-{number}")
    for path in sorted(RESULTS.glob("*.jsonl"))
    for number, line in enumerate(path.read_text().splitlines())
]


@pytest.mark.parametrize(("file", "row"), ROWS)
def test_every_row_is_on_the_page(file, row):
    section = next(part for part in PAGE.split("\n## ") if file in part)
    assert f"| {row['psnr_median']:.2f} |" in section
    assert {"commit", "date", "device", "versions", "study", "scale"} <= set(row)


def test_no_number_of_the_tables_is_without_a_row():
    known = {
        f"{value:.2f}" for row in ROWS for value in (row.values[1]["psnr_median"], *row.values[1]["psnr_quartiles"])
    }
    for line in PAGE.splitlines():
        if line.startswith("| "):
            words = line.replace("|", " ").split()
            assert {word for word in words if len(word.partition(".")[2]) == 2} <= known, line
