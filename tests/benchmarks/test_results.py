"""The page of benchmark results says what the rows say."""

import json
import pathlib

import pytest

RESULTS = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results"
LINES = [
    [word.strip() for word in line.strip().removeprefix("|").removesuffix("|").split("|")]
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


FEDAVG = rows("fedavg.jsonl", "fedavg")


@pytest.mark.parametrize("case", sorted({(row["model"], row["steps"], row["lanes"]) for row in FEDAVG}))
def test_every_number_of_local_steps_is_on_the_page(case):
    (words,) = [words for words in LINES if words[:3] == [str(part) for part in case] and len(words) == 14]
    sides = {row["side"]: row for row in FEDAVG if (row["model"], row["steps"], row["lanes"]) == case}
    for place, side in enumerate(("one_batch", "simulation", "kept", "pytorch_simulation", "pytorch_one_batch"), 3):
        row = sides.get(side)
        assert words[place] == ("" if row is None else f"{row['ms_a_lane_step']['median']:.4g}")
        if place < 6:
            ratio = None if row is None else row["times_as_fast_as_pytorch_simulation"]["median"]
            assert words[place + 5] == ("" if ratio is None else f"{ratio:.2f}")
    assert words[11] == f"{sides['one_batch']['ratio_to_fewest_steps']['median']:.2f}"
    ours = [row for row in sides.values() if "compile_seconds" in row]
    assert words[12] == ", ".join(f"{row['compile_seconds']:.1f}" for row in ours)
    assert words[13] == ", ".join(f"{row['bytes_a_lane'] / 1e6:.2f}" for row in ours)
    for row in sides.values():
        assert {"commit", "date", "device", "versions", "load_average"} <= set(row)


FEDERATION = rows("federation.jsonl", "federation")


@pytest.mark.parametrize("row", FEDERATION, ids=lambda row: str(row["batch_size"]))
def test_every_round_is_on_the_page(row):
    median = {side: spread["median"] for side, spread in row["seconds"].items()}
    figures = [f"{median[side]:.4g}" for side in ("lanes", "lanes_vmapped", "plain", "plain_native")]
    ratios = [row["times_as_fast_as_plain"]["lanes"]["median"], median["plain_native"] / median["lanes"]]
    case = [f"{row['clients']} clients, {row['dataset']}", str(row["batch_size"])]
    assert [*case, *figures, *(f"{ratio:.2f}" for ratio in ratios)] in LINES
    assert row["largest_difference"] < 1e-7
    assert {"commit", "date", "device", "versions"} <= set(row)


SWEEPING = rows("sweeping.jsonl", "sweeping")


@pytest.mark.parametrize("row", SWEEPING, ids=lambda row: row["commit"][:7])
def test_every_sweep_is_on_the_page(row):
    cells = [(name, seconds, row["torch_seconds_of_cells"][name]) for name, seconds in row["seconds_of_cells"].items()]
    for name, ours, theirs in [*cells, ("the whole sweep", row["seconds"], row["torch_seconds"]["median"])]:
        (words,) = [words for words in LINES if words[:2] == [row["commit"][:7], name]]
        assert words[3:] == [str(ours), str(theirs), f"{theirs / ours:.2f}"]
    assert {"commit", "date", "device", "versions"} <= set(row)


@pytest.mark.parametrize("row", rows("emitters.jsonl", "emitters"), ids=lambda row: row["model"])
def test_every_emitter_is_on_the_page(row):
    ways = [row[name] for name in ("default", "older")]
    times = [f"{way['ms_a_lane_step']['median']:.4g}" for way in ways]
    compiling = [str(way["compile_seconds"]) for way in ways]
    assert line(row, 7)[2:] == [f"{row['operations_a_lane_step'] / 1e6:.1f}", *times, *compiling]


def test_no_line_of_the_tables_is_without_a_row():
    names = ("convolutions", "profile", "depth", "emitters", "searching")
    tables = [(f"{name}.jsonl", name) for name in names] + [("steps.jsonl", "step")]
    headings = len(tables) + 3
    local_steps = {(row["model"], row["steps"], row["lanes"]) for row in FEDAVG}
    swept = sum(len(row["seconds_of_cells"]) + 1 for row in SWEEPING)
    of_tables = sum(len(rows(*table)) for table in tables)
    assert len(LINES) - headings == of_tables + len(local_steps) + len(FEDERATION) + swept


@pytest.mark.parametrize("row", rows("searching.jsonl", "searching"), ids=lambda row: row["generator"])
def test_every_search_is_on_the_page(row):
    rates = [f"{row['evaluations_a_second'][way]['median']:.0f}" for way in ("together", "apart", "one_by_one")]
    ratios = [
        f"{row[name]['median']:.2f} ({row[name]['least']:.2f} to {row[name]['most']:.2f})"
        for name in ("together_over_apart", "together_over_apart_with_compiling", "together_over_one_by_one")
    ]
    assert [row["generator"], *rates, *ratios] in LINES
