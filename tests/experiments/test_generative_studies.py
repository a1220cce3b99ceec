"""Studies of attacks through a generator: rows, equal budgets, pictures and verdicts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generator_networks import pixel_network

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data
from jaxleak.experiments.studies import igims_figs_5_6, igims_table_1, latent_search
from jaxleak.experiments.studies.support import generative, generative_plots, images

FIELDS = {"study", "commit", "cell", "target", "budget", "variant", "generator", "settings", "num_steps", "evaluations"}
FIGURES = {f"{name}_{what}" for name in ("mse", "psnr", "ssim") for what in ("median", "quartiles", "mean")}
DIGITS = latent_search.SCALES["seconds"]["digits mlp"].target


def checked(out, name, rows):
    """The rows, of which the file has the same, with what all of them have."""
    kept = [json.loads(line) for line in (out / f"{name}-seconds.jsonl").read_text().splitlines()]
    assert kept == json.loads(json.dumps(rows))
    for row in rows:
        assert {*FIELDS, *FIGURES, "label_correct", "seconds", "loss_median", "model", "dataset"} <= set(row)
        points = row["curve"]
        assert points["evaluations"][-1] == row["evaluations"]
        assert 0 < len(points["evaluations"]) <= generative_plots.POINTS
        assert len({len(line) for line in points.values()}) == 1
    assert len({row["evaluations"] for row in rows}) == 1
    assert (out / f"{name}-seconds.png").read_bytes().startswith(b"\x89PNG")
    return {row["cell"]: row for row in rows}


def saved(path, shape, key=3):
    """A file of a generator of width 2."""
    settings = {"shape": [1, *shape], "width": 2}
    variables = models.GENERATORS["dcgan"](settings["shape"], width=2).init(jax.random.key(key))
    models.save_generator(path, "dcgan", settings, variables)
    return path


def test_table_1_runs_in_pieces_with_all_generators(tmp_path, capsys):
    file, giml = saved(tmp_path / "own.safetensors", (16, 16, 3)), saved(tmp_path / "giml.safetensors", (16, 16, 3), 4)
    for only, files in (
        ("IG", {"generator": file}),
        ("IG-signed", {"generator": file}),
        ("GIAS", {"generator": file, "giml": giml}),
    ):
        rows = igims_table_1.main(igims_table_1.Options(scale="seconds", out=tmp_path, only=(only,), **files))
    found = checked(tmp_path, "igims_table_1", rows)
    names = ["IG", "IG-signed", "GIAS trained", "GIAS giml", "GIAS untrained"]
    assert list(found) == [f"photos mlp equal-24 {name}" for name in names]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photos mlp")]
    assert [line.split(":")[0] for line in printed] == list(found)
    trained, learned, untrained = (found[f"photos mlp equal-24 GIAS {kind}"] for kind in generative.KINDS)
    assert trained["which_generator"].startswith("own.safetensors, sha256 ")
    assert len(trained["which_generator"].split()[-1]) == 12
    assert untrained["which_generator"] == "untrained DCGAN of width 2"
    assert learned["which_generator"].startswith("giml.safetensors, sha256 ")
    assert trained["psnr"] != untrained["psnr"] != learned["psnr"] != trained["psnr"]
    assert rows[1]["settings"] == {"variant": "paper", "total_variation": 1e-6, "labels": "inferred"}
    assert rows[0]["psnr"] != rows[1]["psnr"]
    assert rows[0]["settings"] == {"variant": "unsigned", "total_variation": 1e-6, "labels": "inferred"}
    assert 0 <= rows[0]["ssim_median"] <= 1
    # IGIMS was not run.
    assert set(dict(igims_table_1.COMPARISON.judge(rows)).values()) == {None}


def test_figs_5_6_have_all_variants_and_their_curves(tmp_path):
    rows = igims_figs_5_6.main(igims_figs_5_6.Options(scale="seconds", out=tmp_path))
    found = checked(tmp_path, "igims_figs_5_6", rows)
    names = [variant.name for variant in igims_figs_5_6.VARIANTS]
    assert list(found) == [f"digits mlp {name} untrained" for name in names]
    # Of 8x8 pixels there is none.
    assert rows[0]["ssim_median"] is None
    steps = {row["variant"]: row["num_steps"] for row in rows}
    assert steps["GIAS"] == steps["IGIMS*"] == steps["GGL*"] == rows[0]["evaluations"]
    assert steps["IGIMS"] < steps["GIAS"]
    assert {row["variant"]: row["settings"]["labels"] for row in rows}["IGIMS"] == "alr"
    assert steps["GGL"] * 4 == steps["GGL*"]
    assert len(dict(igims_figs_5_6.COMPARISON.judge(rows))) == 7


def test_latent_search_runs_in_pieces(tmp_path):
    for only in ("PSO", "CMA_ES", "adam-0.1"):
        rows = latent_search.main(latent_search.Options(scale="seconds", out=tmp_path, only=(only,)))
    found = checked(tmp_path, "latent_search", rows)
    assert list(found) == [f"digits mlp {name} untrained" for name in ("PSO", "CMA_ES", "adam-0.1")]
    for row in rows[:2]:
        # Of the best candidate so far by the loss and a term of codes.
        assert (row["num_steps"], row["settings"]["population_size"]) == (3, 4)
    with pytest.raises(ValueError, match="only='PSO trained': nothing is left: expected words that go .* CMA_ES"):
        latent_search.main(latent_search.Options(scale="seconds", out=tmp_path, only=("PSO", "trained")))


@pytest.mark.parametrize("attack", ["ggl", "igims"])
def test_gradients_of_the_target_are_counted_as_they_are_taken(attack):
    calls = []
    settings = {"population_size": 3, **({"rounds": 2} if attack == "igims" else {})}

    def model(params, x):
        # Of an argument, so that it is called for each candidate.
        jax.debug.callback(lambda pixel: calls.append(1), x[0, 0, 0, 0])
        return x.reshape(len(x), -1) @ params["w"] + params["b"]

    params = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3), "b": jnp.zeros(3)}
    truth = jl.Batch(jnp.full((1, 2, 2, 1), 0.25), jnp.array([2]))
    observe = jl.observe.gradient(jl.cross_entropy(model))
    leak = jl.Leak(params, observe(params, truth), labels=truth.y)

    def taken(num_steps):
        about = {
            "shape": (1, 2, 2, 1),
            "num_classes": 3,
            "labels": jl.labels.known,
            "generator": pixel_network((2, 2, 1)),
        }
        own = jl.attacks.NAMES[attack](observe, num_steps=num_steps, **about, **settings)
        calls.clear()
        jax.block_until_ready(jl.solve(own, leak, jax.random.key(0)))
        jax.effects_barrier()
        return len(calls)

    # What is computed once, before the first step and after the last, is not of a step.
    once = taken(1) - generative.costs(attack, 1, settings).sum()
    assert taken(9) - once == generative.costs(attack, 9, settings).sum()


def test_budgets_are_equal_and_as_large_as_they_can_be():
    target = generative.Target("cifar10", (32, 32, 3), "resnet18")
    for variants, total in (
        (igims_table_1.variants(target), 1_000),
        (igims_table_1.variants(target), 400),
        (igims_figs_5_6.VARIANTS, 1_550),
        (latent_search.VARIANTS, 2_500),
    ):
        steps = generative.equal(total, variants, target)
        sums = {generative.costs(one.attack, steps[one.name], one.of(target)).sum() for one in variants}
        assert len(sums) == 1
        assert 0.9 * total < sums.pop() <= total
    assert generative.equal(1_550, igims_figs_5_6.VARIANTS, target)["GGL"] == 31
    with pytest.raises(ValueError, match="total=40: expected enough for steps of CMA_ES"):
        generative.equal(40, latent_search.VARIANTS, target)
    with pytest.raises(ValueError, match="attack=dlg: expected"):
        generative.costs("dlg", 3, {})


def test_the_paper_s_budget_has_the_paper_s_steps():
    cifar, imagenet = (
        igims_table_1.SCALES["paper"][f"{name} resnet18"].target for name in ("cifar10", "imagenet_sample")
    )
    own = {"IG": 8_000, "IG-signed": 8_000, "GIAS": 2_000, "IGIMS": 2_275}
    assert igims_table_1.steps(cifar, igims_table_1.PAPER_BUDGET) == own
    assert igims_table_1.steps(imagenet, igims_table_1.PAPER_BUDGET)["IG"] == 20_000
    of_igims = generative.costs("igims", 2_275, {})
    assert [int(np.sum(of_igims == one)) for one in (50, 1)] == [300 + 150 + 75, 1_000 + 500 + 250]


def test_a_trained_generator_is_for_images_of_its_shape(tmp_path):
    file, variant = saved(tmp_path / "own.safetensors", (8, 8, 1)), latent_search.VARIANTS[0]
    given, both = generative.Options(generator=file), igims_table_1.Options(generator=file, giml=file)
    assert generative.kinds(variant, DIGITS, given) == ("trained", "untrained")
    assert generative.kinds(variant, DIGITS, both) == generative.KINDS
    assert generative.kinds(variant, DIGITS._replace(shape=(16, 16, 1)), both) == ("untrained",)
    assert generative.kinds(variant, DIGITS, generative.Options()) == ("untrained",)
    for option in ("generator", "giml"):
        message = rf"^{option}='.*own.safetensors': images of shape \(8, 8, 1\): expected those of a target"
        with pytest.raises(ValueError, match=message):
            igims_table_1.main(igims_table_1.Options(scale="seconds", out=tmp_path, **{option: file}))
    cells = igims_figs_5_6._cells(igims_figs_5_6.Options(scale="seconds", generator=file))
    untrained = [name for name in cells if name.endswith(" untrained")]
    assert untrained == ["digits mlp IGIMS* untrained", "digits mlp GIAS untrained"]
    assert len(cells) == 7


@pytest.mark.parametrize("study", [igims_table_1, igims_figs_5_6, latent_search])
@pytest.mark.parametrize("scale", ["minutes", "paper"])
def test_cells_of_larger_scales_are_named_by_their_words(study, scale):
    cells = study._cells(study.Options(scale=scale))
    every = study._cells(study.Options(scale=scale, only=("cifar10",)))
    assert set(cells) <= set(every)
    assert all(name.split()[0] in ("cifar10", "att_faces", "imagenet_sample") for name in every)
    if (study, scale) == (igims_table_1, "minutes"):
        assert {name.split()[1] for name in cells} == {"resnet18-0.25", "resnet18"}
        assert {name.split()[0] for name in every} == {"cifar10", "att_faces", "imagenet_sample"}


def test_resized_images_are_those_that_generators_are_trained_on():
    photos = data.load("photos")
    small = images.resized(photos, 16)
    x, y = small.take([0, 3])
    of_32, labels = photos.take([0, 3])
    np.testing.assert_allclose(x, jax.image.resize(of_32, (2, 16, 16, 3), "linear"), atol=1e-6)
    assert y.tolist() == labels.tolist()
    assert (small.shape, len(small)) == ((16, 16, 3), len(photos))
    # Their own: images shrunk have less contrast.
    assert small.stddev < photos.stddev
    with pytest.raises(ValueError, match=r"digits: images of shape \(16, 16, 1\): expected \(16, 16, 3\)"):
        generative.dataset(DIGITS._replace(shape=(16, 16, 3)), None)


def test_a_curve_keeps_the_last_loss_of_a_lane_that_ended():
    loss = np.array([[4.0, 2.0, 1.0], [4.0, 3.0, np.nan]])
    found = generative.curve(loss, np.array([50, 100, 101]))
    assert found["evaluations"] == [50, 100, 101]
    assert found["median"] == [4.0, 2.5, 2.0]
    assert found["high"] == [4.0, 2.75, 2.5]
    long = generative.curve(np.ones((2, 1_000)), np.arange(1, 1_001))
    assert len(long["evaluations"]) == generative_plots.POINTS
    assert (long["evaluations"][0], long["evaluations"][-1]) == (1, 1_000)
    assert generative.curve(np.full((1, 2), np.nan), np.array([1, 2]))["median"] == [None, None]


def made_up(variant, generator="trained", **figures):
    return {"target": "t", "budget": "paper", "variant": variant, "generator": generator, **figures}


def test_the_order_of_table_1_by_rows_that_are_made_up():
    rows = [
        made_up("IG", "none", psnr_median=20.0, ssim_median=0.5),
        made_up("GIAS", psnr_median=21.0, ssim_median=0.4),
        made_up("IGIMS", psnr_median=22.0, ssim_median=0.6),
        made_up("GIAS", "untrained", psnr_median=19.0, ssim_median=0.5),
    ]
    claim = "t, paper, {} generator: IGIMS >= GIAS >= IG in the median {}"
    assert dict(igims_table_1.COMPARISON.judge(rows)) == {
        claim.format("trained", "PSNR"): True,
        claim.format("trained", "SSIM"): False,
        claim.format("untrained", "PSNR"): None,
        claim.format("untrained", "SSIM"): None,
    }


def test_the_parts_of_igims_by_rows_that_are_made_up():
    curves = {
        "IGIMS*": {"evaluations": [0, 100], "median": [1.0, 0.2]},
        "GIAS": {"evaluations": [0, 50, 100], "median": [1.0, 0.7, 0.1]},
    }
    psnr = {"IGIMS": 25.0, "IGIMS*": 24.0, "GIAS": 23.0, "GGL": 15.0, "GGL*": 16.0}
    rows = [made_up(name, psnr_median=one, curve=curves.get(name)) for name, one in psnr.items()]
    rows.append(made_up("IGIMS*", "untrained", psnr_median=23.5, curve=None))
    place = "t, trained generator: "
    assert dict(igims_figs_5_6.COMPARISON.judge(rows)) == {
        f"{place}IGIMS is at least IGIMS*: CMA-ES for the codes, in the median PSNR": True,
        f"{place}GGL is at least GGL*: CMA-ES for the codes, in the median PSNR": False,
        f"{place}IGIMS is at least GGL: the weights too, in the median PSNR": True,
        f"{place}GIAS is at least GGL: the weights too, in the median PSNR": True,
        f"{place}IGIMS* is at least GIAS: rounds, in the median PSNR": True,
        "t: IGIMS* is at least what it is with an untrained generator": True,
        "t: IGIMS* with an untrained generator is at least GIAS with a trained one": True,
        f"{place}after half of the gradients the median loss of IGIMS* is at most that of GIAS": True,
        f"{place}at the end the median loss of IGIMS* is at most that of GIAS": False,
    }


def test_a_search_is_judged_image_by_image_and_by_medians():
    def row(variant, losses, psnr):
        median = float(np.median([1.0 if one is None else one for one in losses]))
        return made_up(variant, loss=[[one] for one in losses], loss_median=median, psnr_median=psnr)

    rows = [
        row("CMA_ES", [0.1, 0.3, 0.9], 15.0),
        row("adam-0.03", [0.2, None, 0.8], 14.0),
        row("adam-0.1", [0.1, 0.2, 0.8], 16.0),
        row("PSO", [0.5, 0.5, 0.5], 13.0),
    ]
    assert latent_search.lower(rows[0], rows[1]) == (2, 3)
    place = "t, trained generator: "
    assert dict(latent_search.COMPARISON.judge(rows)) == {
        f"{place}CMA-ES ends at a lower loss than Adam of 0.03 on more than half of the images (2 of 3)": True,
        f"{place}CMA-ES ends at a lower loss than Adam of 0.1 on more than half of the images (0 of 3)": False,
        f"{place}the median loss of CMA-ES is at least as good as that of Adam of either rate": False,
        f"{place}the median PSNR of CMA-ES is at least as good as that of Adam of either rate": False,
        f"{place}the median loss of CMA-ES is at most that of Sep_CMA_ES": None,
        f"{place}the median loss of CMA-ES is at most that of PSO": True,
        f"{place}the median loss of CMA-ES is at most that of Open_ES": None,
    }
    other = row("adam-0.1", [0.1], 16.0)
    assert latent_search.lower(rows[0], other) is None
