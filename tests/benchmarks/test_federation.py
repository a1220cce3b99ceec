"""The benchmark of rounds: its sides are the same round, and a row has what its page needs."""

import json

import numpy as np

from jaxleak.benchmarks import federation


def test_all_sides_are_one_round_and_are_timed(tmp_path):
    out = tmp_path / "rows.jsonl"
    federation.main(federation.Options(clients=3, batch_sizes=(4,), images=24, repeats=2, devices=1, out=out))
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["client_steps"] == 6
    assert 0 <= row["largest_difference"] < 1e-5
    assert set(row["seconds"]) == {"lanes", "lanes_vmapped", "plain", "plain_native"}
    assert set(row["times_as_fast_as_plain"]) == {"lanes", "lanes_vmapped", "plain_native"}
    assert all(np.isfinite(spread["median"]) and spread["median"] > 0 for spread in row["seconds"].values())
