"""An audit of one's own update: what is declared is checked, and what is said follows from what was measured."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.stats
from flax import traverse_util

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import cli, data
from jaxleak.experiments.audit import declaring, measuring

SHAPE = (1, 8, 8, 1)
MODEL = models.mlp(num_classes=10)
LOSS = jl.cross_entropy(MODEL.apply)


def flat(tree, separator="/"):
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(tree, sep=separator).items()}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A folder with what a client had and sent: parameters, a gradient, trained parameters, its image."""
    root = tmp_path_factory.mktemp("client")
    x, y = data.load("digits").take([5])
    params = MODEL.init(jax.random.key(3), x)
    gradient = jax.grad(LOSS)(params, jl.Batch(x, y))
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    np.savez(root / "before.npz", **flat(params))
    np.savez(root / "gradient.npz", **flat(gradient))
    # Other names for the same: dots between keys, and without the collection.
    (root / "before.safetensors").write_bytes(safetensors.numpy.save(flat(params["params"], ".")))
    (root / "after.safetensors").write_bytes(safetensors.numpy.save(flat(after["params"], ".")))
    np.savez(root / "truth.npz", x=x, y=y)
    return root


FLAGS = ["--model", "mlp", "--shape", "8", "8", "1", "--seeds", "2", "--num-steps", "20", "--attack", "idlg"]


def audit(client, *flags, out=None):
    given = ["audit", *FLAGS, *map(str, flags), *(["--out", str(out)] if out else []), "--quiet"]
    return cli.main(given)


def test_a_gradient_is_rebuilt_and_the_page_says_so(client, tmp_path, capsys):
    out = tmp_path / "audit"
    files = ["--before", client / "before.npz", "--gradient", client / "gradient.npz", "--truth", client / "truth.npz"]
    assert audit(client, *files, out=out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    found = json.loads((out / "audit.json").read_text())
    (idlg,) = found["attacks"]
    # A fully connected first layer gives its input away: the label is that of the image, and so is the image.
    assert idlg["labels"] == np.load(client / "truth.npz")["y"].tolist()
    assert idlg["psnr"][0] > 30
    assert idlg["mismatch"] < 1e-4 < min(idlg["mismatch_by_chance"])
    assert found["doubts"] == []
    assert "take the image for readable" in " ".join(found["verdict"])
    assert f"{idlg['psnr'][0]:.1f} dB" in found["verdict"][0]
    page = (out / "report.html").read_text()
    assert all(sentence in page for sentence in found["verdict"])
    with np.load(out / "arrays.npz", allow_pickle=False) as kept:
        assert kept["idlg/x"].shape == (2, *SHAPE)
    assert audit(client, *files, out=out) == 2
    assert "already holds" in capsys.readouterr().err


def test_trained_parameters_in_safetensors_are_the_same_client(client, tmp_path):
    flags = [
        "--before",
        client / "before.safetensors",
        "--after",
        client / "after.safetensors",
        "--local-learning-rate",
    ]
    assert audit(client, *flags, "0.1", out=tmp_path / "a") == 0
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert found["doubts"] == []
    assert found["attacks"][0]["psnr"] is None
    assert found["attacks"][0]["labels"] == np.load(client / "truth.npz")["y"].tolist()


@pytest.mark.parametrize("rate", [1e-4, 100.0])
def test_a_rate_that_is_not_the_client_s_is_doubted(client, tmp_path, rate):
    flags = [
        "--before",
        client / "before.safetensors",
        "--after",
        client / "after.safetensors",
        "--local-learning-rate",
    ]
    assert audit(client, *flags, rate, out=tmp_path / "a") == 0
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    (doubt,) = found["doubts"]
    assert "times as large as those of made-up batches" in doubt
    factor = float(doubt.split(" times")[0].split()[-1])
    # Noise and a digit are not the same size; a wrong rate is another matter.
    assert 0.1 / rate / 10 < factor < 0.1 / rate * 10
    assert "does not look as declared" in found["verdict"][-1]


def declared(update, params=None, **changes):
    given = {"shape": SHAPE, "num_classes": 10, "training": None, "assumed": "simulation", **changes}
    target = declaring.Target("mlp", MODEL.apply, MODEL.init)
    params = MODEL.init(jax.random.key(0), jnp.zeros(SHAPE)) if params is None else params
    return declaring.declare(target, params, gradient=update(params), **given)


def own_gradient(params):
    (batch,) = declaring.made_up(SHAPE, 10, 1, seed=7)
    return jax.grad(LOSS)(params, batch)


def test_an_array_that_is_left_out_is_named():
    def without(params):
        gradient = own_gradient(params)
        first = next(iter(gradient["params"]))
        layer = {**gradient["params"][first], "kernel": 0 * gradient["params"][first]["kernel"]}
        return {"params": {**gradient["params"], first: layer}}

    found = declared(without)
    assert len(found.doubts) == 1
    assert "kernel is zero in the update" in found.doubts[0]
    assert declared(own_gradient).doubts == ()


def test_batch_statistics_that_moved_are_named():
    model = models.create("resnet20", num_classes=10)
    shape = (1, 8, 8, 3)
    params = model.init(jax.random.key(0), jnp.zeros(shape))
    after = jax.tree.map(lambda leaf: leaf * 1.001, params)
    found = declaring.declare(
        declaring.Target("resnet20", model.apply, model.init),
        params,
        after=after,
        shape=shape,
        num_classes=10,
        training=declaring.client.Training(0.1),
        assumed="one_batch",
    )
    assert any("Batch statistics differ" in doubt for doubt in found.doubts)
    assert any("keeps statistics of batches" in fact for fact in found.facts)


def test_a_model_of_ones_own_is_found_by_its_path(client, tmp_path, monkeypatch):
    (tmp_path / "mine_to_audit.py").write_text(
        "from jaxleak import models\n"
        "def make():\n    return models.mlp(num_classes=10)\n"
        "def plain():\n    return models.mlp(num_classes=10).apply\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise KeyError('gone')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert declaring.target("mine_to_audit:make", 10).init is not None
    assert declaring.target("mine_to_audit:plain", 10).init is None
    for name, match in [
        ("number", "made int: expected a flax module"),
        ("broken", "KeyError: 'gone'"),
        ("none", "AttributeError"),
    ]:
        with pytest.raises(ValueError, match=match):
            declaring.target(f"mine_to_audit:{name}", 10)
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        declaring.target("not_there_at_all:make", 10)


def changed(client, tmp_path, name, change):
    with np.load(client / name) as file:
        arrays = dict(file)
    np.savez(tmp_path / name, **change(arrays))
    return tmp_path / name


def first(arrays):
    return sorted(arrays)[0]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (lambda c, t: ["--gradient", c / "gradient.npz"], "before=None: expected the file"),
        (lambda c, t: ["--before", c / "before.npz"], "after, gradient: expected one of them"),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--after", c / "before.npz"],
            "expected one of them",
        ),
        (lambda c, t: ["--before", c / "none.npz", "--gradient", c / "gradient.npz"], "No such file"),
        (lambda c, t: ["--before", c / "truth.npz", "--gradient", c / "gradient.npz"], "as model=mlp has it"),
        (lambda c, t: ["--before", c / "before.npz", "--gradient", c / "truth.npz"], "gradient: "),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--num-classes", "7"],
            "as model=mlp has it",
        ),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--local-steps", "2"],
            "local_steps=2: the client sends one gradient",
        ),
        (lambda c, t: ["--before", c / "before.npz", "--after", c / "before.npz"], "every entry is zero"),
        (
            lambda c, t: [
                "--before",
                c / "before.npz",
                "--gradient",
                changed(c, t, "gradient.npz", lambda a: {**a, first(a): a[first(a)] * np.nan}),
            ],
            "that are NaN or infinite",
        ),
        (
            lambda c, t: [
                "--before",
                c / "before.npz",
                "--gradient",
                changed(c, t, "gradient.npz", lambda a: {**a, first(a): a[first(a)][:-1]}),
            ],
            "gradient: ",
        ),
        (
            lambda c, t: [
                "--before",
                c / "before.npz",
                "--gradient",
                changed(c, t, "gradient.npz", lambda a: {**a, f"{first(a)}/x": np.zeros(3)}),
            ],
            "paths of one another",
        ),
        (
            lambda c, t: [
                "--before",
                c / "before.npz",
                "--gradient",
                c / "gradient.npz",
                "--truth",
                changed(c, t, "truth.npz", lambda a: {**a, "y": np.array([10])}),
            ],
            "y",
        ),
        (
            lambda c, t: [
                "--before",
                c / "before.npz",
                "--gradient",
                c / "gradient.npz",
                "--truth",
                changed(c, t, "truth.npz", lambda a: {**a, "x": a["x"] * 2 - 1}),
            ],
            "with values in [0, 1]",
        ),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--attack", "idlgg"],
            "unknown attack 'idlgg'",
        ),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--model", "nothing"],
            "nothing",
        ),
        (
            lambda c, t: ["--before", c / "before.npz", "--gradient", c / "gradient.npz", "--shape", "8", "8"],
            "shape=(8, 8): expected height, width and channels",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(client, tmp_path, capsys, flags, match):
    out = tmp_path / "out"
    assert audit(client, *flags(client, tmp_path), out=out) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson():
    for hits, count in [(0, 4), (3, 4), (4, 4)]:
        low, high = measuring.share_interval(hits, count)
        assert low == pytest.approx(scipy.stats.beta.ppf(0.025, hits, count - hits + 1) if hits else 0)
        assert high == pytest.approx(scipy.stats.beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1)


def measured(mismatch, photographs, psnr=None):
    return measuring.Measured(
        attack="idlg", labels=np.zeros(1, int), x=np.zeros((1, *SHAPE)), loss=np.zeros((5, 1)), status=np.zeros((5, 1)),
        mismatch=np.array(mismatch), chance=np.ones(3), agreement=1.0, photographs=np.array(photographs),
        photograph_x=np.zeros((4, *SHAPE)), psnr=psnr, ssim=psnr, best=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "doubts", "said"),
    [
        (measured([0.1, 0.2, 0.3, 0.4, 0.5], [30, 30, 10, 10]), (), "take the image for readable"),
        (measured([0.31, 0.2, 0.3, 0.4, 0.5], [30, 30, 10, 10]), (), "is open"),
        (measured([0.0, 0.2, 0.3, 0.4, 0.5], [10, 10, 10, 19.9]), (), "It is no proof"),
        (measured([0.1, 0.2, 0.3, 0.4, 0.5], [30, 30, 10, 10]), ("x",), "depends on that"),
        (measured([0.1, 0.2, 0.3, 0.4, 0.5], [10] * 4, np.array([25.0])), (), "rebuilt the image at 25.0 dB"),
    ],
)
def test_the_verdict_follows_from_what_was_measured(found, doubts, said):
    assert said in " ".join(measuring.verdict([found], doubts, 1))
