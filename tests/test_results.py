"""The page of results says what the rows say."""

import json
import pathlib
import statistics

import pytest

RESULTS = pathlib.Path(__file__).parent.parent / "experiments" / "results"
PAGE = (RESULTS / "README.md").read_text()
ROWS = [
    pytest.param(path.name, json.loads(line), id=f"{path.stem}-{number}")
    for path in sorted(RESULTS.glob("*.jsonl"))
    for number, line in enumerate(path.read_text().splitlines())
]


def figures(row):
    """What the page has to say of a row, as it is written there."""
    if "reason" in row:
        # What an attack cannot do, by its name.
        return [row["attack"]]
    if "effective_entries" in row:
        return [f"{row['effective_entries']:.4g}"]
    if "overlap" in row:
        told = ("overlap", "ks", "detector", "balanced")
        return [f"{row[name]:.3f}" for name in told if row[name] is not None]
    if "inversion_mse" in row:
        ranks = [statistics.median(row["correlation"][name]) for name in ("mse", "features")]
        return [f"{row['lowest_near_z1']:.3f}", *(f"{rank:.3f}" for rank in ranks)]
    if "mse_r_mean" in row:
        return [f"{row['psnr_mean']:.2f}", f"{row['ssim_mean']:.3f}"]
    if "informed" in row:
        return [f"{row['psnr_median']:.2f}", f"{row['ssim_median']:.3f}"]
    if "claims" in row:
        return [f"{row['claims']['largest_difference']:.2f}"]
    if "curve" in row and "accuracy" in row:
        return [f"{row['accuracy']:.2f}"]
    if "accuracy" in row:
        return [f"{row['accuracy']:.3f}"]
    if "rates" in row and isinstance(row["rates"][0], dict):
        return [f"{rate[kind]:.3f}" for rate in row["rates"] for kind in ("image", "update")]
    medians = row["psnr_median"]
    return [f"{value:.2f}" for value in (medians if isinstance(medians, list) else [medians])]


def numbers(value):
    """Every number in a row, and in what it holds."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize(("file", "row"), ROWS)
def test_every_row_is_on_the_page(file, row):
    section = next(part for part in PAGE.split("\n## ") if file in part)
    words = section.replace("|", " ").split()
    assert [figure for figure in figures(row) if figure not in words] == []
    assert {"commit", "date", "device", "versions", "study", "scale"} <= set(row)


THEOREMS = [row.values[1] for row in ROWS if "effective_entries" in row.values[1]]


@pytest.mark.parametrize("case", sorted({(row["model"], row["dataset"], row["batch_size"]) for row in THEOREMS}))
def test_the_worst_of_the_theorems_is_on_the_page(case):
    rows = [row for row in THEOREMS if (row["model"], row["dataset"], row["batch_size"]) == case]
    above = {row["keep"]: row["share_above"]["0.05"] for row in rows if row["stddev"] == 5e-3}
    worst = [
        f"{min(row['distance'] / row['bound'] for row in rows):.1f}",
        f"{max(row['z'] for row in rows):.1f}",
        *(f"{100 * above[keep]:.1f} %" for keep in (0.6, 0.1)),
    ]
    words = [*map(str, case), str(rows[0]["entries"]), f"{rows[0]['effective_entries']:.4g}", *worst]
    assert f"| {' | '.join(words)} |" in PAGE.splitlines()


def test_no_number_of_the_tables_is_without_a_row():
    """Those with two decimals are decibels, those with three are shares."""
    known = {f"{value:.{digits}f}" for row in ROWS for value in numbers(row.values[1]) for digits in (2, 3)}
    known |= {figure for row in ROWS for figure in figures(row.values[1])}
    for line in PAGE.splitlines():
        if line.startswith("| "):
            words = line.replace("|", " ").split()
            assert {word for word in words if len(word.partition(".")[2]) in (2, 3)} <= known, line


def test_rows_come_from_a_commit():
    """One that has been changed since is no source."""
    changed = {file for file, row in (row.values for row in ROWS) if row["commit"].endswith("-dirty")}
    assert changed == set()
