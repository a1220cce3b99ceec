"""Studies of defenses against attacks through a generator: rows at the scale of seconds, verdicts on rows by hand."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxleak.experiments import data
from jaxleak.experiments.studies import gradient_dropout_fig_2, lrp_fig_4, lrp_table_3
from jaxleak.experiments.studies.support import codes, generative, ggl, leakage, similarity
from jaxleak.generators import Network

PNG = b"\x89PNG"
FIELDS = {"study", "scale", "commit", "date", "device", "settings", "num_steps", "seconds", "generator"}


def matrix(shape=(32, 32, 3), size=4):
    """Images as products of a few codes with a fixed matrix, which compiles fast."""
    weights = 0.05 * jax.random.normal(jax.random.key(3), (size, int(np.prod(shape))))

    def apply(weights, code, y=None):
        return jax.nn.sigmoid(code @ weights).reshape(-1, *shape)

    return Network(lambda key: weights, apply, (size,))


@pytest.fixture
def small(monkeypatch):
    """Studies whose generator is a matrix."""
    made = generative.Named(matrix(), "untrained", "a matrix")
    monkeypatch.setattr(ggl, "_generator", lambda *given: made)
    monkeypatch.setattr(gradient_dropout_fig_2, "_generator", lambda *given: made)
    lrp_table_3._given.cache_clear()
    lrp_fig_4._given.cache_clear()
    return made


def kept(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestTable3:
    def test_rows_of_lrp_and_of_random_codes_are_run_in_pieces(self, tmp_path, small):
        first = lrp_table_3.main(lrp_table_3.Options(scale="seconds", out=tmp_path, only="LRP"))
        assert [row["attacker"] for row in first] == ["nominal", "expected", "estimated", "cosine"]
        rows = lrp_table_3.main(lrp_table_3.Options(scale="seconds", out=tmp_path, only="random"))
        assert rows[:4] == json.loads(json.dumps(first))
        assert rows[4]["attacker"] == "random"
        assert kept(tmp_path / "lrp_table_3-seconds.jsonl") == json.loads(json.dumps(rows))
        for row in rows:
            assert set(row) >= FIELDS
            assert row["images"] == 2
            for metric in ("mse", "psnr", "ssim", "mse_r"):
                assert len(row[metric]) == 2
                assert row[f"{metric}_mean"] == pytest.approx(np.mean(row[metric]), rel=1e-2)
            assert row["lpips_vgg_mean"] is None
            assert row["missing"] == dict.fromkeys(("lpips_vgg", "lpips_alex"), "no backbone weights")
        nominal, expected, estimated, cosine, random = rows
        # The expectation is 2, so that the rate is at most four times eta.
        assert all(0 <= factor <= 4 for factor in nominal["factors"])
        ratio = nominal["received_norm_median"] / expected["received_norm_median"]
        assert ratio == pytest.approx(2, rel=1e-2)
        assert nominal["paper"]["mse"] == 0.4627
        assert not any("paper" in row for row in rows[1:])
        assert estimated["informed"]
        assert cosine["settings"]["distance"] == "cosine"
        assert random["num_steps"] == 0
        assert (tmp_path / "lrp_table_3-photos-mlp-seconds.png").read_bytes().startswith(PNG)

    def test_every_cell_has_a_defense_and_an_attacker_of_its_own(self):
        cells = [(text, who) for program in lrp_table_3.PROGRAMS for text, who in program.attackers.items()]
        assert len(set(cells)) == len(cells) == 11
        assert {text for text, who in cells if who == "reference"} == set(lrp_table_3.BASELINES)
        assert set(lrp_table_3.PAPER) == {*lrp_table_3.BASELINES, lrp_table_3.LRP}
        # Knowing of noise is the identity, so such cells are with those who know of nothing.
        for program in lrp_table_3.PROGRAMS:
            for text, who in program.attackers.items():
                if who == "reference":
                    known = [name for name in lrp_table_3.KNOWN[text] if name != "gaussian_noise"]
                    assert known == list(program.settings.get("known_defense", ()))

    def test_verdicts_by_hand(self):
        def row(defense, attacker, mse, **others):
            metrics = {
                "mse": mse,
                "psnr": float(-10 * np.log10(mse)),
                "mse_r": mse,
                "lpips_vgg": None,
                "lpips_alex": None,
            }
            metrics = {f"{name}_mean": value for name, value in {**metrics, **others}.items()}
            return {"setting": "s", "defense": defense, "attacker": attacker, **metrics}

        rows = [row("none", "random", 0.3), row("none", "plain", 0.1), row("none", "cosine", 0.1)]
        rows += [row(text, "reference", 0.15) for text in lrp_table_3.BASELINES]
        lrp = lrp_table_3.LRP
        rows += [row(lrp, "nominal", 0.2), row(lrp, "estimated", 0.1), row(lrp, "cosine", 0.1, mse_r=0.5)]
        found = dict(lrp_table_3.COMPARISON.judge(rows))
        best = "s: LRP is the best of the six defenses, by mean"
        assert found[f"{best} MSE"] is found[f"{best} PSNR"] is found[f"{best} MSE-R"] is True
        assert found[f"{best} MSE, with LRP attacked by who estimates the rate"] is False
        assert found[f"{best} PSNR, with LRP attacked by a cosine"] is False
        assert found[f"{best} MSE-R, with LRP attacked by a cosine"] is True
        assert found[f"{best} LPIPS (VGG)"] is None
        assert found["s: to a cosine LRP is no defense, within 0.5 dB of mean PSNR"] is True
        # A baseline that is not there, and an attack that finds nothing.
        some = dict(lrp_table_3.COMPARISON.judge(rows[:5] + rows[-3:]))
        assert some[f"{best} MSE"] is None
        nothing = list(lrp_table_3.COMPARISON.judge([row("none", "random", 0.1), row("none", "plain", 0.2)]))
        assert [holds for _, holds in nothing] == [False]

    @pytest.mark.parametrize("options", [{"only": "nobody"}, {"setting": "imagenet"}])
    def test_nothing_left_is_refused(self, options, tmp_path):
        with pytest.raises(ValueError, match="nothing is left"):
            lrp_table_3.main(lrp_table_3.Options(scale="seconds", out=tmp_path, **options))

    def test_a_setting_without_its_files_is_left_out(self, tmp_path):
        settings = lrp_table_3.SCALES["minutes"]
        folder, file = pathlib.Path("weights"), pathlib.Path("g.safetensors")
        assert ggl.chosen(settings, ggl.Options(weights_dir=folder)) == ["mnist, lenet"]
        assert ggl.chosen(settings, ggl.Options(generator=file)) == ["cifar10, lenet", "cifar10, resnet18"]
        with pytest.raises(ValueError, match="the files that it needs"):
            ggl.chosen(settings, ggl.Options())


class TestFig4:
    def test_rows_have_the_curves_of_the_picture(self, tmp_path, small):
        rows = lrp_fig_4.main(lrp_fig_4.Options(scale="seconds", out=tmp_path))
        assert kept(tmp_path / "lrp_fig_4-seconds.jsonl") == json.loads(json.dumps(rows))
        assert [(row["defense"], row["attacker"]) for row in rows] == list(lrp_fig_4.CASES)
        assert (tmp_path / "lrp_fig_4-photos-mlp-seconds.png").read_bytes().startswith(PNG)
        for row in rows:
            assert set(row) >= FIELDS
            assert np.shape(row["loss"]) == np.shape(row["mse"]) == (2, len(row["a"]))
            assert np.shape(row["surface"]["loss"]) == (3, 3)
            # At a = 0 is what GGL found, at a = 1 what the inversion did; the surface has both on its middle line.
            a, own = np.array(row["a"]), {name: np.array(row[name]) for name in ("loss", "mse")}
            np.testing.assert_allclose(own["loss"][:, a == 0][:, 0], row["ggl_loss"], rtol=2e-3)
            np.testing.assert_allclose(own["mse"][:, a == 1][:, 0], row["inversion_mse"], rtol=2e-3)
            half = row["surface"]["a"].index(0.5)
            assert row["surface"]["mse"][1][half] == pytest.approx(own["mse"][0, a == 0.5][0], rel=1e-4)
            for i, found in enumerate(row["correlation"]["mse"]):
                other = scipy.stats.spearmanr(row["loss"][i], row["mse"][i]).statistic
                # Ranks of what the row has, which is rounded.
                assert found == pytest.approx(other, abs=0.35)
        assert rows[0]["factors"] is None
        assert all(0 <= factor <= 4 for factor in rows[2]["factors"])
        assert rows[2]["factors"] == rows[3]["factors"]

    def test_verdicts_by_hand(self):
        def row(case, correlation, lowest=1.0, loss=1.0):
            return {
                "setting": "s",
                "defense": case[0],
                "attacker": case[1],
                "correlation": {"mse": correlation},
                "lowest_near_z1": lowest,
                "z1_loss_median": loss,
            }

        cases = lrp_fig_4.CASES
        rows = [row(cases[0], [0.9, 0.4, None]), row(cases[1], [0.2, 0.3, 0.9], 0.25, 5.0), row(cases[2], [-0.5])]
        found = dict(lrp_fig_4.COMPARISON.judge(rows))
        error = "the loss and the mean squared error, pixels in 0 to 1"
        assert found[f"s, no defense, plain: {error} do go together"] is True
        assert found[f"s, additive noise, plain: {error} do go together"] is False
        assert found[f"s, LRP, nominal: {error} do not go together"] is True
        assert found[f"s, LRP, estimated: {error} do go together"] is None
        lowest = "the loss is lowest within 0.1 of z1, on at least half of the images"
        assert found[f"s, no defense, plain: {lowest}"] is True
        assert found[f"s, additive noise, plain: {lowest}"] is False
        assert found["s: noise raises the median loss at z1"] is True
        assert not any("LPIPS" in claim for claim in found)

    @pytest.mark.parametrize("scale", lrp_fig_4.SCALES)
    def test_curves_have_both_ends(self, scale):
        found = np.round(np.linspace(-0.5, 1.5, lrp_fig_4.SCALES[scale].points), 6)
        assert {0.0, 1.0} <= set(found.tolist())

    def test_a_rank_correlation_needs_ranks(self):
        assert lrp_fig_4.rank(np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 9.0])) == 1.0
        assert lrp_fig_4.rank(np.ones(3), np.arange(3.0)) is None
        assert lrp_fig_4.rank(np.array([1.0, np.nan, 3.0]), np.arange(3.0)) is None


class TestCodes:
    def test_a_line_goes_through_both_codes(self):
        z1, z2 = jax.random.normal(jax.random.key(0), (2, 1, 7))
        found = codes.along(z1, z2, np.array([-0.5, 0.0, 0.5, 1.0, 1.5]))
        np.testing.assert_array_equal(found[1], z1)
        np.testing.assert_array_equal(found[3], z2)
        np.testing.assert_allclose(found[2], (z1 + z2) / 2, rtol=1e-6)
        np.testing.assert_allclose(found[4], z2 + (z2 - z1) / 2, rtol=1e-5, atol=1e-6)

    def test_the_other_direction_is_at_a_right_angle_and_as_long(self):
        z1, z2 = jax.random.normal(jax.random.key(0), (2, 1, 7))
        found = codes.across(z1, z2, jax.random.key(1))
        assert found.shape == z1.shape
        assert float(jnp.vdot(found, z2 - z1)) == pytest.approx(0, abs=1e-5)
        assert float(jnp.linalg.norm(found)) == pytest.approx(float(jnp.linalg.norm(z2 - z1)), rel=1e-5)

    def test_inversion_finds_the_codes_of_images_that_the_network_makes(self):
        network = matrix((4, 4, 1))
        planted = jax.random.normal(jax.random.key(5), (2, 4))
        truth = network.apply(network.init(jax.random.key(0)), planted)
        settings = {"key": jax.random.key(6), "starts": 3}
        found, errors = codes.inverted(network, truth, jnp.zeros(2, jnp.int32), num_steps=800, **settings)
        np.testing.assert_allclose(found[:, 0], planted, atol=0.05)
        _, none = codes.inverted(network, truth, jnp.zeros(2, jnp.int32), num_steps=1, **settings)
        assert np.all(errors < none / 10)


class TestSimilarity:
    def test_what_is_missing_says_why(self, tmp_path):
        found = similarity.lpips({"vgg": None, "alex": tmp_path / "alex.safetensors"}, tmp_path, 28)
        assert not found.of
        assert found.missing["lpips_vgg"] == "no backbone weights"
        assert found.missing["lpips_alex"] == "images of 28 pixels a side, and alex takes 31 or more"
        found = similarity.lpips({"vgg": tmp_path / "vgg.safetensors"}, None, 28)
        assert found.missing == {"lpips_vgg": "no weights of linear layers"}

    def test_means_are_over_draws_then_images(self):
        def first(truth, x):
            return x[:, 0, 0, 0] - truth[:, 0, 0, 0]

        x = np.arange(6.0).reshape(3, 2, 1, 1, 1)
        measures = similarity.Measures({"one": first}, {"other": "a reason"})
        found = similarity.compared(measures, jnp.zeros((2, 1, 1, 1)), x)
        assert found["one"] == [2.0, 3.0]
        assert found["one_mean"] == found["one_median"] == 2.5
        assert found["other_mean"] is None
        assert found["missing"] == {"other": "a reason"}

    def test_numbers_of_rows(self):
        assert similarity.significant(np.array([[1.23456, np.nan]])) == [[1.235, None]]
        assert similarity.significant(73.61234, 6) == 73.6123


class TestGradientDropout:
    @pytest.mark.parametrize("attack", ["gias", "cinet"])
    def test_attacks_through_a_generator_have_rows_that_name_it(self, attack, tmp_path, small):
        options = gradient_dropout_fig_2.Options(scale="seconds", out=tmp_path, attack=attack, only="none")
        (row,) = gradient_dropout_fig_2.main(options)
        assert kept(tmp_path / "gradient_dropout_fig_2-seconds.jsonl") == [json.loads(json.dumps(row))]
        assert set(row) >= FIELDS
        assert row["generator"] == "a matrix"
        assert row["settings"] == {"labels": "zlr", **({"code_share": 0.2} if attack == "gias" else {})}
        assert row["batch_size"] == 2

    def test_all_scales_have_the_four_attacks_of_the_figure(self):
        for *_, attacks in gradient_dropout_fig_2.SCALES.values():
            assert set(attacks) == {"idlg", "inverting_gradients", "gias", "cinet"}
        images, batch_size, _, num_steps = gradient_dropout_fig_2.SCALES["paper"][4]["gias"]
        assert (batch_size, num_steps, gradient_dropout_fig_2.CODE_SHARE * num_steps) == (8, 4000, 800)
        assert images % batch_size == 0

    def test_each_attack_has_its_own_generator(self, tmp_path):
        dataset = data.load("photos")
        given = leakage.clients(("none",), model="mlp", dataset=dataset, images=2, model_settings={"hidden": (4,)})
        options = gradient_dropout_fig_2.Options(scale="seconds", out=tmp_path)
        found = {name: gradient_dropout_fig_2._generator(name, given, options) for name in ("gias", "cinet", "idlg")}
        assert found["gias"].about == "untrained DCGAN of width 2"
        assert found["cinet"].about == "untrained, of CI-Net"
        assert found["idlg"] is None
        missing = gradient_dropout_fig_2.Options(generator=tmp_path / "none.safetensors")
        with pytest.raises(ValueError, match=r"none\.safetensors"):
            gradient_dropout_fig_2._generator("gias", given, missing)
