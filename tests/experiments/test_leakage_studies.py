"""Studies of leakage: programs that hold many cells, verdicts by hand, intervals and detectors beside other code."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxleak.experiments import data
from jaxleak.experiments.attack import figures, scenario
from jaxleak.experiments.studies import (
    frontier,
    gradient_dropout_fig_2,
    gradient_dropout_fig_9,
    leakage_grid,
    lrp_fig_2,
)
from jaxleak.experiments.studies.support import leakage, study, verdicts

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Rows of one attack of the leakage grid at the scale of seconds, and their folder."""
    out = tmp_path_factory.mktemp("results")
    return out, leakage_grid.main(leakage_grid.Options(scale="seconds", out=out, attack="inverting_gradients"))


def test_the_grid_has_a_row_for_each_attacker(grid):
    out, rows = grid
    kept = [json.loads(line) for line in (out / "leakage_grid-seconds.jsonl").read_text().splitlines()]
    assert kept == json.loads(json.dumps(rows))
    cells = {(row["attack"], row["informed"], row["defense"]) for row in rows}
    defenses = {*leakage_grid.SCALES["seconds"][3], *leakage_grid.COPIES.values()}
    # There is nothing to know of no defense.
    attack = "inverting_gradients"
    assert cells == {(attack, knows, text) for knows in (False, True) for text in defenses} - {(attack, True, "none")}
    assert len(cells) == len(rows)
    for row in rows:
        assert {"study", "scale", "commit", "date", "device", "settings", "num_steps", "seconds"} <= set(row)
        assert row["ssim_interval"][0] <= row["ssim_median"] <= row["ssim_interval"][1]
        assert np.shape(row["psnr"]) == np.shape(row["ssim"]) == (2, 2, 1)
        assert ("same_as" in row) == (row["defense"] in leakage_grid.COPIES.values())
    found = [json.loads(line) for line in (out / "leakage_grid_verdicts-seconds.jsonl").read_text().splitlines()]
    assert {row["verdict"] for row in found} == {"defense", "weakest", "claim"}


def test_a_cell_among_lanes_is_the_cell_alone(grid):
    """What `study.measure` finds of the same scenario by itself, for a plain and for an informed attacker."""
    _, rows = grid
    text, dataset = "gaussian_noise:variance=1e-4", data.load("photos")
    settings = {"total_variation": leakage_grid.TOTAL_VARIATION, "mean": dataset.mean, "stddev": dataset.stddev}
    for informed in (False, True):
        prepared = scenario.prepare(
            model="lenet", dataset=dataset, images=2, normalise=False, defense=text, informed=informed
        )
        alone = study.measure(prepared, "inverting_gradients", seeds=2, num_steps=2, **settings)
        (row,) = (r for r in rows if (r["informed"], r["defense"]) == (informed, text))
        np.testing.assert_allclose(row["psnr"], alone["psnr"], atol=0.1)
        np.testing.assert_allclose(row["loss"], alone["loss"], rtol=1e-2)
        assert row["ssim_median"] == pytest.approx(alone["ssim_median"], abs=0.01)
    # Another cell is another.
    assert row["loss"] != next(r["loss"] for r in rows if r["defense"] == "none")


def test_a_study_is_run_in_pieces(tmp_path):
    options = study.Options(scale="seconds", out=tmp_path)
    one, other = row_of("none", "a", False, 0.5), row_of("none", "b", False, 0.5)
    about = {"model": "m", "batch_size": 1, "label_correct": 1.0, "seconds": 0.0}
    leakage.collect("pieces", options, [lambda: [{**one, **about}], lambda: [{**other, **about}]])
    rows = leakage.collect("pieces", options, [lambda: [{**one, **about, "ssim_median": 0.7}]])
    assert [(row["attack"], row["ssim_median"]) for row in rows] == [("a", 0.7), ("b", 0.5)]
    assert study.load("pieces", options) == rows
    assert study.load("others", options) == []


def test_programs_join_what_one_compilation_can_serve():
    (plain,) = leakage.programs(leakage_grid.DEFENSES, informed=False)
    assert plain.defenses == leakage_grid.DEFENSES
    assert not plain.informed
    found = leakage.programs(leakage_grid.DEFENSES, informed=True)
    assert sorted(text for one in found for text in one.defenses) == sorted(set(leakage_grid.DEFENSES) - {"none"})
    by_first = {one.known[0].name: one for one in found if one.known[0].name != "quantize"}
    assert len(found) == len(by_first) + 3  # bits decide shapes
    assert by_first["dp_sgd"].numbers == {"max_norm": (4.0, math.inf, math.inf), "stddev": (0.1, 1e-4, 1e-3)}
    assert len(by_first["prune"].defenses) == 7
    assert not by_first["prune"].numbers
    (chain,) = leakage.programs(["clip:max_norm=1+prune"], informed=True)
    assert [part.name for part in chain.known] == ["clip", "prune"]
    assert not chain.numbers


def test_the_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    values = random.normal(size=(25, 1, 1))
    found = figures.interval(values, np.zeros((25, 1)), draws=20_000)
    other = scipy.stats.bootstrap(
        (values.ravel(),), np.median, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(found, other, atol=0.02)


def test_the_interval_is_of_the_best_seeds():
    values = np.array([[[0.0], [5.0]], [[5.0], [9.0]]])
    loss = np.array([[2.0, 1.0], [1.0, np.inf]])
    assert figures.interval(values, loss) == (5.0, 5.0)
    low, high = figures.interval(values, loss, over_seeds=True)
    # The better seed is not always drawn.
    assert low < 5.0 <= high


def row_of(defense, attack, informed, ssim, low=None, high=None):
    """What verdicts read of a row."""
    interval = [ssim if low is None else low, ssim if high is None else high]
    return {
        "defense": defense,
        "attack": attack,
        "informed": informed,
        "dataset": "d",
        "ssim_median": ssim,
        "psnr_median": 100 * ssim,
        "ssim_interval": interval,
        "ssim": [[[ssim]]] * 3,
        "psnr": [[[100 * ssim]]] * 3,
        "loss": [[1.0]] * 3,
    }


ROWS = [
    row_of("none", "a", False, 0.9, 0.8, 0.95),
    row_of("none", "b", False, 0.1),
    row_of("prune:fraction=0.9", "a", False, 0.1),
    row_of("prune:fraction=0.9", "a", True, 0.6),
    row_of("prune:fraction=0.9", "b", False, 0.05),
    row_of("prune:fraction=0.99", "a", False, 0.1),
    row_of("prune:fraction=0.99", "a", True, 0.15),
    row_of("prune:fraction=0.1", "a", False, 0.5, 0.4, 0.7),
    row_of("prune:fraction=0.1", "a", True, 0.85, 0.8, 0.9),
]


def test_verdicts_by_hand():
    claims = [
        verdicts.Claim("prune:fraction=0.9", "stopped", ("a",)),
        verdicts.Claim("prune:fraction=0.1", "artefacts", ("a",), "d"),
        verdicts.Claim("prune:fraction=0.1", "leaks", ("b",)),
        verdicts.Claim("prune:fraction=0.1", "stopped", ("a",), "other"),
    ]
    found = list(verdicts.verdicts(ROWS, "d", claims))
    # 0.1 is artefacts to plain attackers alone; attack b does not work anyhow.
    assert [one["held"] for one in found if one["verdict"] == "claim"] == [
        {"plain": True, "all": False},
        {"plain": True, "all": False},
        {"plain": None, "all": None},
    ]
    weakest = {one["attack"]: one for one in found if one["verdict"] == "weakest"}
    assert weakest["a"]["stops"] == {"plain": "prune:fraction=0.9", "informed": "prune:fraction=0.99"}
    assert not weakest["b"]["works"]
    assert set(weakest["b"]["stops"].values()) == {None}
    # Of attack a alone, since b has no informed rows.
    alone = list(verdicts.verdicts([row for row in ROWS if row["attack"] == "a"], "d"))
    broken = {one["defense"]: one["broken_by_informed"] for one in alone if one["verdict"] == "defense"}
    assert broken == {
        "none": None,
        "prune:fraction=0.9": True,
        "prune:fraction=0.99": False,
        "prune:fraction=0.1": False,
    }
    assert all(verdicts.described(one) for one in found)


def test_strengths_are_in_order():
    texts = ["gradient_dropout:keep=0.96,stddev=5e-3", "gradient_dropout:keep=0.6,stddev=5e-3"]
    texts += ["quantize:bits=16", "quantize:bits=mixed", "quantize:bits=8"]
    texts += ["dp_sgd:max_norm=inf,stddev=1e-4", "dp_sgd:max_norm=inf,stddev=1e-3", "dp_sgd:max_norm=4,stddev=0.1"]
    for family in ("gradient_dropout", "quantize", "dp_sgd"):
        own = [text for text in texts if text.startswith(family)]
        backwards = own[::-1]
        assert sorted(backwards, key=verdicts.strength) == own


def test_lrp_has_three_attackers_and_a_picture(tmp_path):
    rows = lrp_fig_2.main(lrp_fig_2.Options(scale="seconds", out=tmp_path))
    assert [row["attacker"] for row in rows] == ["plain", "nominal", "expected", "informed"]
    assert rows[0]["factors"] is None
    assert all(0 < factor < 4 for factor in rows[1]["factors"])
    assert rows[1]["factors"] == rows[3]["factors"]
    # Divided by two, the factor is another, and so is what is matched.
    assert rows[1]["loss"] != rows[2]["loss"]
    assert (tmp_path / "lrp_fig_2-photos-seconds.png").read_bytes().startswith(PNG)


def test_gradient_dropout_fig_2_has_accuracy_where_there_is_one(tmp_path):
    other = {"model": "lenet", "dataset": "photos", "defense": "soteria:fraction=0.8"}
    lines = [{**other, "accuracy": 70.0}, {**other, "accuracy": 80.0}, {**other, "dataset": "mnist", "accuracy": 1.0}]
    (tmp_path / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = gradient_dropout_fig_2.Options(scale="seconds", out=tmp_path, attack="inverting_gradients")
    rows = gradient_dropout_fig_2.main(options)
    assert [(row["defense"], row["informed"]) for row in rows] == [
        ("none", False),
        ("soteria:fraction=0.8", False),
        ("soteria:fraction=0.8", True),
    ]
    assert {row["batch_size"] for row in rows} == {2}
    assert [row["accuracy"] for row in rows] == [None, 75.0, 75.0]
    assert rows[1]["accuracy_from"] == "training"
    assert rows[1]["paper"] == {"ssim": "below 0.2"}
    # Which is not what the paper says of who knows.
    assert rows[2]["paper"] is None


def test_gradient_dropout_fig_9_and_what_it_can_tell(tmp_path):
    rows = gradient_dropout_fig_9.main(study.Options(scale="seconds", out=tmp_path))
    assert {row["state"] for row in rows} == {"untrained", "trained"}
    assert (tmp_path / "gradient_dropout_fig_9-seconds.png").read_bytes().startswith(PNG)
    for row in rows:
        assert 0 <= row["overlap"] <= 1
        assert 0 <= row["ks"] <= 1
        if row["defense"].startswith("dp_sgd"):
            assert row["detector"] is None
        else:
            # What is left of the replaced share is chance, within four of its standard deviations.
            keep = float(row["defense"].partition("keep=")[2].partition(",")[0])
            share = min(row["chance"], 1 - row["chance"])
            assert abs(share - (1 - keep)) < 4 * (keep * (1 - keep) / row["entries"]) ** 0.5
            assert row["detector"] >= row["chance"]


def test_the_best_threshold_is_that_of_the_roc_curve():
    random = np.random.default_rng(0)
    for shift in (0.0, 1.0, -2.0):
        replaced = random.random(300) < 0.3
        # Rounded, so that entries repeat.
        size = np.round(random.normal(size=300) + shift * replaced, 1)
        accuracy, balanced = gradient_dropout_fig_9.best_threshold(size, replaced)
        wrong, right, _ = sklearn.metrics.roc_curve(replaced, size, drop_intermediate=False)
        assert balanced == pytest.approx(0.5 + np.max(np.abs(right - wrong)) / 2)
        called = right * replaced.sum() + (1 - wrong) * (~replaced).sum()
        assert accuracy == pytest.approx(max(called.max(), 300 - called.min()) / 300)
    ks = scipy.stats.ks_2samp(size[replaced], size[~replaced])
    assert balanced == pytest.approx((1 + ks.statistic) / 2)


def test_what_is_told_of_equal_and_of_foreign_entries():
    x = np.random.default_rng(0).normal(size=500)
    same = gradient_dropout_fig_9.told(x, x, None)
    assert (same["overlap"], same["ks"], same["detector"]) == (1.0, 0.0, None)
    apart = gradient_dropout_fig_9.told(x, 100 + x, None)
    assert (apart["overlap"], apart["ks"]) == (0.0, 1.0)


def test_the_frontier_takes_the_strongest_attacker():
    trained = [
        {"dataset": "d", "defense": "prune:fraction=0.9", "accuracy": value, "seed": seed}
        for seed, value in enumerate((90.0, 92.0))
    ]
    rows = [row for row in ROWS if row["attack"] == "a"]
    found = {point["defense"]: point for point in frontier.points(rows, trained, "d")}
    pruned = found["prune:fraction=0.9"]
    assert (pruned["accuracy"], pruned["accuracy_range"], pruned["seeds"]) == (91.0, [90.0, 92.0], 2)
    assert pruned["ssim"] == {"value": 0.6, "interval": [0.6, 0.6], "attacker": "a, informed"}
    assert pruned["attackers"] == 2
    assert found["none"]["ssim"]["attacker"] == "a, plain"
    assert found["none"]["accuracy"] is None
    assert frontier.plot(list(found.values()), "d").startswith(PNG)


def test_the_frontier_trains_and_plots(grid, tmp_path):
    out, _ = grid
    options = frontier.Options(scale="seconds", out=out, part="train", only="gaussian")
    trained, copy = frontier.main(options)
    assert 0 <= trained["accuracy"] <= 100
    assert trained["curve"][-1] == [1, trained["accuracy"]]
    found = frontier.main(frontier.Options(scale="seconds", out=out, part="plot"))
    assert json.loads((out / "frontier-photos-seconds.json").read_text()) == found
    assert (out / "frontier-photos-seconds.png").read_bytes().startswith(PNG)
    assert (copy["same_as"], copy["accuracy"]) == (trained["defense"], trained["accuracy"])
    measured = {point["defense"]: point["accuracy"] is not None for point in found}
    assert measured == {"none": False, trained["defense"]: True, copy["defense"]: True}
    with pytest.raises(ValueError, match="no rows of leakage_grid of photos at scale seconds"):
        frontier.main(frontier.Options(scale="seconds", out=tmp_path, part="plot"))
    with pytest.raises(ValueError, match="part='draw': expected one of all, train, plot"):
        frontier.main(frontier.Options(scale="seconds", out=tmp_path, part="draw"))


def test_every_defense_of_the_grid_is_trained_as_one_that_can_be_read():
    assert set(frontier.TRAINED_AS) <= set(leakage_grid.DEFENSES)
    assert set(leakage_grid.COPIES) <= set(leakage_grid.DEFENSES)
    for claim in leakage_grid.CLAIMS:
        assert claim.defense in leakage_grid.DEFENSES
        assert claim.outcome in verdicts.OUTCOMES


def test_a_part_that_selects_nothing_is_refused(tmp_path):
    for module in (leakage_grid, gradient_dropout_fig_2, lrp_fig_2):
        with pytest.raises(ValueError, match="only='nothing'"):
            module.main(module.Options(scale="seconds", out=tmp_path, only="nothing"))
    for module in (leakage_grid, gradient_dropout_fig_2):
        with pytest.raises(ValueError, match="unknown attack 'ildg': known are idlg"):
            module.main(module.Options(scale="seconds", out=tmp_path, attack="ildg"))
