"""Studies of attacks that go back layer by layer, or that have a group of seeds: rows, reasons and verdicts."""

import json

import numpy as np
import pytest

from jaxleak.experiments import data
from jaxleak.experiments.studies import gradinversion_ablation, recursion, survey_figs_3_4, survey_recursive
from jaxleak.experiments.studies.support import images


def kept(out, name):
    return [json.loads(line) for line in (out / f"{name}-seconds.jsonl").read_text().splitlines()]


def test_the_images_since_one_are_those_of_the_data_set():
    dataset = data.load("digits")
    later = images.since(dataset, 100)
    assert (len(later), later.mean) == (len(dataset) - 100, dataset.mean)
    np.testing.assert_array_equal(later.take([0, 7])[0], dataset.take([100, 107])[0])
    assert [later.label(index) for index in range(3)] == [dataset.label(100 + index) for index in range(3)]


def test_gradinversion_ablation_has_both_answers_of_each_variant(tmp_path):
    rows = gradinversion_ablation.main(gradinversion_ablation.Options(scale="seconds", out=tmp_path))
    assert kept(tmp_path, "gradinversion_ablation") == json.loads(json.dumps(rows))
    expected = [
        (variant.name, variant.statistics, answer)
        for variant in gradinversion_ablation.variants("received")
        for answer in ("best", "consensus")
    ]
    assert [(row["variant"], row["statistics"], row["answer"]) for row in rows] == expected
    # Each variant, and each kind of statistics, is another run.
    best = [row["loss"][0][0] for row in rows if row["answer"] == "best"]
    assert len({*best[:6]}) == 6
    for row in rows:
        assert {"setting", "settings", "num_steps", "seconds", "commit"} <= set(row)
        assert np.shape(row["psnr"]) == (1, 1, 2)
    paper = [row["paper"]["psnr"] for row in rows if "paper" in row]
    assert paper == [10.753, 12.058, 12.524, 12.929]
    judged = dict(gradinversion_ablation.COMPARISON.judge(rows))
    assert len(judged) == 8
    assert None not in judged.values()


def test_gradinversion_ablation_needs_weights_for_a_trained_network(tmp_path):
    options = gradinversion_ablation.Options(setting="A", out=tmp_path)
    with pytest.raises(ValueError, match=r"weights_dir=None: nothing is left: .* folder of cifar10_resnet20.safetens"):
        gradinversion_ablation.main(options)
    unknown = gradinversion_ablation.Options(scale="seconds", only="batch_norm", out=tmp_path)
    with pytest.raises(ValueError, match="only='batch_norm', weights_dir=None: nothing is left"):
        gradinversion_ablation.main(unknown)
    with pytest.raises(ValueError, match="unknown setting 'C'"):
        gradinversion_ablation.main(gradinversion_ablation.Options(setting="C", out=tmp_path))


def test_recursion_has_a_reason_where_it_refuses(tmp_path):
    rows = recursion.main(recursion.Options(scale="seconds", out=tmp_path))
    assert kept(tmp_path, "recursion") == json.loads(json.dumps(rows))
    found = {(row["network"], row["attack"]): row for row in rows}
    refused = found.pop(("mlp, relu", "rgap"))
    assert refused["reason"].startswith("rgap: what follows ['params']['dense1']['kernel'] cannot be inverted")
    assert "psnr_median" not in refused
    for (network, _), row in found.items():
        assert row["psnr_median"] > 60
        assert row["first_image"] == 100
        assert (row["seconds_alone"] is None) == (network != "mlp")
        assert 0 < row["seconds_lanes"] < 10
        assert row["label_correct"] == 1
    first, second = found["mlp", "rgap"]["rank"]
    assert (first["name"], first["unknowns"], first["is_determined"]) == ("dense1", 64, True)
    assert (second["name"], second["unknowns"], second["is_determined"]) == ("linear", 16, True)


def test_recursion_by_a_row_that_falls_short():
    layers = [{"is_determined": True, "determined": 1.0, "name": "a"}, {"is_determined": False, "determined": 0.5}]
    row = {"network": "cnn6", "attack": "rgap", "rank": layers, "psnr_median": 39.0, "seconds_lanes": 1.0}
    judged = dict(recursion.COMPARISON.judge([{**row, "seconds_alone": 11.0}]))
    assert not judged["R-GAP on cnn6: the median PSNR is 40 dB or more"]
    assert not judged["R-GAP on cnn6: at most 10 s an image, as lanes and alone"]
    assert not judged["rank analysis: every layer of cnn6 is determined"]
    assert judged["cnn6-d: COPA is above R-GAP"] is None


def test_a_part_that_selects_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only='nothing'"):
        recursion.main(recursion.Options(scale="seconds", out=tmp_path, only="nothing"))
    with pytest.raises(ValueError, match="unknown attack 'rgapp'"):
        recursion.main(recursion.Options(scale="seconds", out=tmp_path, attack="rgapp"))


def test_recursive_attacks_leak_until_they_are_defended(tmp_path):
    rows = survey_recursive.main(survey_recursive.Options(scale="seconds", out=tmp_path))
    assert kept(tmp_path, "survey_recursive") == json.loads(json.dumps(rows))
    cells = {(row["attack"], row["defense"]): row for row in rows}
    assert len(cells) == len(rows) == 9
    for attack in ("rgap", "copa"):
        assert cells[attack, "none"]["psnr_median"] > 40
        assert cells[attack, "none"]["images"] == 2
        assert cells[attack, survey_recursive.SMALL_NOISE]["psnr_median"] < cells[attack, "none"]["psnr_median"]
    judged = dict(survey_recursive.COMPARISON.judge(rows))
    assert len(judged) == 9
    assert judged["mlp, photos: without a defense the images leak to R-GAP, with a median SSIM of 0.2 or more"]
    # It has taken two steps: nothing can be said of what stops it.
    assert judged["mlp, photos: prune:fraction=0.01 does not stop IG"] is None
    only = survey_recursive.Options(scale="seconds", out=tmp_path, attack="rgap", model="mlp", only="prune")
    assert len(survey_recursive.main(only)) == 9
    with pytest.raises(ValueError, match="unknown model 'lenet'"):
        survey_recursive.main(survey_recursive.Options(scale="seconds", out=tmp_path, model="lenet"))


def test_images_of_two_classes():
    dataset = data.load("digits")
    two = images.of_classes(dataset, count=3)
    x, y = two.take(range(6))
    assert len(two) == 6
    assert sorted(np.bincount(y)[np.bincount(y) > 0]) == [3, 3]
    assert (x[0] == dataset.take([0])[0][0]).all()
    with pytest.raises(ValueError, match="digits: fewer than 1000 images of 2 classes"):
        images.of_classes(dataset, count=1000)


def test_the_survey_has_every_attack_or_its_reason(tmp_path):
    rows = survey_figs_3_4.main(survey_figs_3_4.Options(scale="seconds", out=tmp_path))
    assert kept(tmp_path, "survey_figs_3_4") == json.loads(json.dumps(rows))
    cells = {(row["figure"], row["attack"]): row for row in rows}
    assert len(cells) == len(rows) == 2 * len(survey_figs_3_4.NAMES) + 1
    refused = {cell: row["reason"] for cell, row in cells.items() if "reason" in row}
    assert set(refused) == {("fig_3", attack) for attack in ("idlg", "rgap", "copa")}
    for attack in ("rgap", "copa"):
        assert refused["fig_3", attack].startswith(f"{attack}: shape=(4, 8, 8, 1): recursion rebuilds one example")
    for cell, row in cells.items():
        if cell not in refused:
            assert row["batch_size"] == (1 if cell[0] == "fig_4" else 4)
            assert {"psnr_median", "ssim_median", "statuses", "num_steps", "seconds", "image"} <= set(row)
    picture = tmp_path / "survey_figs_3_4-seconds.png"
    assert picture.read_bytes() == survey_figs_3_4.picture([row for row in rows if row["figure"] == "fig_4"])
    judged = dict(survey_figs_3_4.COMPARISON.judge(rows))
    assert judged["mlp, digits: iDLG's label is right in all lanes"]
    assert judged["R-GAP refuses batches"]
    assert judged["COPA refuses batches"]
    piece = survey_figs_3_4.Options(scale="seconds", out=tmp_path, attack="rgap", figure="fig_4")
    assert len(survey_figs_3_4.main(piece)) == len(rows)
    for kind in ("attack", "data", "model", "figure"):
        with pytest.raises(ValueError, match=f"unknown {kind} 'x'"):
            survey_figs_3_4.main(survey_figs_3_4.Options(scale="seconds", out=tmp_path, **{kind: "x"}))
