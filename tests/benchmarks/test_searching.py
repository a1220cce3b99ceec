"""The benchmark of searches: all ways are timed, and the figures fit each other."""

import json

from jaxleak import lanes
from jaxleak.benchmarks import searching


def test_all_ways_are_timed(tmp_path):
    out = tmp_path / "rows.jsonl"
    searching.main(searching.Options(generators=(0,), seeds=2, population=4, generations=2, repeats=2, out=out))
    (row,) = map(json.loads, out.read_text().splitlines())
    assert set(row["evaluations_a_second"]) == {"together", "apart", "one_by_one"}
    assert set(row["seconds_with_compiling"]) == {"together", "apart"}
    ratios = [row[f"together_over_{name}"] for name in ("apart", "one_by_one", "apart_with_compiling")]
    for spread in (*row["evaluations_a_second"].values(), *row["seconds_with_compiling"].values(), *ratios):
        assert 0 < spread["least"] <= spread["median"] <= spread["most"]
    assert (row["seeds"], row["population"], row["generator"]) == (2, 4, "a matrix")


def test_each_of_the_runs_apart_finds_nothing_compiled(tmp_path, monkeypatch):
    forgotten = []
    monkeypatch.setattr(searching.jax, "clear_caches", lambda: forgotten.append(lanes.program.cache_info().currsize))
    out = tmp_path / "rows.jsonl"
    searching.main(searching.Options(generators=(0,), seeds=3, population=4, generations=2, repeats=1, out=out))
    assert forgotten == [0] * (1 + 3)
