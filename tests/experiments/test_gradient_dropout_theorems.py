"""The study of gradient dropout's theorems: its formulas, and its smallest scale."""

import json

import numpy as np
import pytest

from jaxleak.experiments.studies import gradient_dropout_theorems as study
from jaxleak.experiments.studies.support import study as studies


def test_formulas_of_a_gradient_of_two_entries():
    """By hand: g = (1, 2), p = 1/2, variance 4; entries kept at twice their value differ by themselves."""
    g = np.array([1.0, 2.0])
    # Kept: 1 and 4. Replaced: 4 + 1 and 4 + 4. Halves of all, over two entries.
    assert study.expected_distance(g, 0.5, 2.0) == pytest.approx((1 + 4 + 5 + 8) / 4)
    assert study.printed_distance(g, 0.5, 2.0) == pytest.approx((1 + 4 + 4 + 4) / 4 + (1 + 4) / 8)
    assert study.distance_bound(0.5, 2.0) == 2.0
    # u = 5/2: u / sqrt(u (5 + 2)) and u / sqrt(5 + 2).
    assert study.cosine_limit(g, 0.5, 2.0) == pytest.approx(2.5 / np.sqrt(2.5 * 7))
    assert study.printed_cosine_limit(g, 0.5, 2.0) == pytest.approx(2.5 / np.sqrt(7))
    assert study.effective_entries(g) == pytest.approx(25 / 17)
    assert study.effective_entries(np.full(7, -3e-30)) == pytest.approx(7)


def test_the_smallest_scale(tmp_path, capsys):
    rows = study.main(studies.Options(scale="seconds", out=tmp_path))
    kept = (tmp_path / "gradient_dropout_theorems-seconds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == json.loads(json.dumps(rows))
    printed = capsys.readouterr().out.splitlines()
    assert len(rows) == len(printed) == 8
    for row, line in zip(rows, printed, strict=True):
        assert str(row["expected"]) in line
        assert {"study", "scale", "commit", "date", "device", "seconds"} <= set(row)
        assert row["bound"] <= row["printed"] <= row["expected"]
        assert row["limit"] <= row["root"] + 1e-4
        assert row["z"] < 5
    assert {row["model"] for row in rows} == {"one_entry", "lenet"}
    for row in rows:
        if row["model"] == "one_entry" and row["keep"] == 0.5:
            assert 0.3 < row["share_above"]["0.1"] < 0.7
