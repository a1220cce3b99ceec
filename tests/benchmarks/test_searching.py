"""The benchmark of searches: all ways are timed, and the figures fit each other."""

import json

from jaxleak.benchmarks import searching


def test_all_ways_are_timed(tmp_path):
    out = tmp_path / "rows.jsonl"
    searching.main(searching.Options(generators=(0,), seeds=2, population=4, generations=2, repeats=2, out=out))
    (row,) = map(json.loads, out.read_text().splitlines())
    assert set(row["evaluations_a_second"]) == {"together", "apart", "one_by_one"}
    for spread in (*row["evaluations_a_second"].values(), row["together_over_apart"], row["together_over_one_by_one"]):
        assert 0 < spread["least"] <= spread["median"] <= spread["most"]
    assert (row["seeds"], row["population"], row["generator"]) == (2, 4, "a matrix")
    assert row["together_over_commands_that_compile"] > 0
