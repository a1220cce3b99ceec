"""The two emitters are two programs, and both are timed."""

import json

import jax

from jaxleak.benchmarks import emitters


def test_both_are_timed(tmp_path, monkeypatch):
    asked, compiled = [], jax.stages.Lowered.compile

    def spied(lowered, *options):
        asked.append(bool(options))
        return compiled(lowered, *options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", spied)
    out = tmp_path / "rows.jsonl"
    emitters.main(emitters.Options(models=("lenet",), lanes=1, repeats=2, seconds=0.01, out=out))
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["operations_a_lane_step"] > 1e6
    # The steps, the default first.
    assert asked[:2] == [False, True]
    assert all(row[name]["ms_a_lane_step"]["median"] > 0 for name in emitters.EMITTERS)
