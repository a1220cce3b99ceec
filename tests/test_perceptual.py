"""LPIPS against a numpy forward pass and the package of its authors; refusals."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbones import CHANNELS, NETS, REFERENCE, SMALLEST, pair, shapes
from safetensors.numpy import load_file, save_file

from jaxleak import metrics

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "weights"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")


class Case(NamedTuple):
    """Random weights, and the files they are in."""

    backbone_state: dict[str, np.ndarray]
    linear_state: dict[str, np.ndarray]
    backbone: pathlib.Path
    linear: pathlib.Path
    weights: Any


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    @functools.cache
    def make(net):
        generator, state = np.random.default_rng(0), {}
        for name, (outputs, inputs, window) in shapes(net).items():
            weight = generator.standard_normal((outputs, inputs, window, window), np.float32)
            state[f"{name}.weight"] = weight * np.float32((2 / (inputs * window**2)) ** 0.5)
            state[f"{name}.bias"] = generator.standard_normal(outputs, np.float32) / 10
        linear = {
            f"lin{k}.model.1.weight": generator.random((1, channels, 1, 1), np.float32)
            for k, channels in enumerate(CHANNELS[net])
        }
        folder = tmp_path_factory.mktemp(net)
        backbone_path, linear_path = folder / "net.safetensors", folder / "lin.safetensors"
        # As torchvision's own files have it, there is a classifier.
        save_file({**state, "classifier.1.weight": np.zeros((2, 2), np.float32)}, backbone_path)
        save_file(linear, linear_path)
        return Case(state, linear, backbone_path, linear_path, metrics.load_lpips(net, backbone_path, linear_path))

    return make


@jax.jit
def value_and_gradient(weights, truth, x):
    return jax.value_and_grad(lambda x: metrics.lpips(weights, truth, x).sum())(x)


def reference(net, case, truth, x):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    values = []
    for images in zip(truth.astype(float), x.astype(float), strict=True):
        slices = [
            list(REFERENCE[net](case.backbone_state, ((2 * i - 1 - shift) / scale).transpose(2, 0, 1))) for i in images
        ]
        total = 0.0
        for k, features in enumerate(zip(*slices, strict=True)):
            a, b = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in features)
            weight = case.linear_state[f"lin{k}.model.1.weight"].astype(float).reshape(-1, 1, 1)
            total += (weight * (a - b) ** 2).sum(0).mean()
        assert k + 1 == len(CHANNELS[net])
        values.append(total)
    return np.array(values)


@pytest.mark.parametrize(("net", "sides"), [("alex", (34, 41)), ("vgg", (17, 32)), ("squeeze", (34, 41))])
def test_lpips_is_that_of_a_numpy_forward_pass(case, net, sides):
    truth, x = pair(*sides)
    found = metrics.lpips(case(net).weights, truth, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(net, case(net), truth, x), rtol=1e-4)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_in_float64_and_its_slope_are_those_of_numpy(case, net, x64):
    truth, x = (image.astype(float) for image in pair(31, 36, n=1))
    value, gradient = value_and_gradient(case(net).weights, truth, x)
    assert value.dtype == jnp.float64
    expected = functools.partial(reference, net, case(net), truth)
    np.testing.assert_allclose(value, expected(x).sum(), rtol=1e-9)
    direction = np.random.default_rng(1).standard_normal(x.shape)
    # Short steps, since there are many kinks.
    slope = (expected(x + 1e-8 * direction) - expected(x - 1e-8 * direction)).sum() / 2e-8
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5)


@pytest.fixture
def package(case, tmp_path):
    """The authors' network with our random backbone and its own linear layers, and both as we load them."""
    lpips, torch = pytest.importorskip("lpips"), pytest.importorskip("torch")

    def make(net):
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        with torch.no_grad():
            for name, parameter in theirs.net.named_parameters():
                parameter.copy_(torch.from_numpy(case(net).backbone_state[f"features.{name.partition('.')[2]}"]))
        linear = {name: leaf.numpy() for name, leaf in theirs.state_dict().items() if name.startswith("lin")}
        path = tmp_path / "published.safetensors"
        save_file({name: leaf for name, leaf in linear.items() if not name.startswith("lins.")}, path)

        def distance(truth, x):
            truth, x = (
                torch.tensor(images.transpose(0, 3, 1, 2).astype(float), requires_grad=True) for images in (truth, x)
            )
            values = theirs.double()(truth, x, normalize=True)[:, 0, 0, 0]
            values.sum().backward()
            return values.detach().numpy(), x.grad.numpy().transpose(0, 2, 3, 1)

        return distance, metrics.load_lpips(net, case(net).backbone, path)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("net", NETS)
def test_lpips_and_its_gradient_are_those_of_the_authors_package(package, net, x64):
    theirs, weights = package(net)
    smallest = SMALLEST[net]
    for sides in [(smallest, 40), (64, 50)]:
        truth, x = pair(*sides)
        expected, expected_gradient = theirs(truth, x)
        np.testing.assert_allclose(metrics.lpips(weights, truth, x), expected, rtol=1e-4)
        # In float64, so that both take the same side of every kink. Theirs has some constants in float32.
        value, gradient = value_and_gradient(weights, truth.astype(float), x.astype(float))
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())
    truth, x = pair(smallest - 1, 64)
    with pytest.raises(RuntimeError, match="[Oo]utput size"):
        theirs(truth, x)


@pytest.mark.parametrize("net", NETS)
def test_images_below_the_least_side_are_refused(case, net):
    smallest = SMALLEST[net]
    fine, _ = pair(smallest, smallest)
    assert jax.eval_shape(metrics.lpips, case(net).weights, fine, fine).shape == (2,)
    for sides in [(smallest - 1, 64), (64, smallest - 1)]:
        small, _ = pair(*sides)
        message = rf"lpips of {sides[0]}x{sides[1]} images: expected at least {smallest} pixels a side for net='{net}'"
        with pytest.raises(ValueError, match=message):
            metrics.lpips(case(net).weights, small, small)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_equal_images_are_at_distance_zero_with_a_gradient_of_zero(case, net, x64):
    truth, _ = pair(31, 36, n=1)
    for images in [truth.astype(float), np.zeros(truth.shape)]:
        value, gradient = value_and_gradient(case(net).weights, images, images)
        # Two passes over equal images in one program may be rounded each in its own way.
        np.testing.assert_allclose(value, 0, atol=1e-12)
        np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_where_all_features_are_off_the_gradient_is_finite(case, x64):
    weights = case("alex").weights
    off = {name: leaf - 1e3 if name == "features.0.bias" else leaf for name, leaf in weights.features.items()}
    images = (images.astype(float) for images in pair(31, 36, n=1))
    value, gradient = value_and_gradient(metrics.Lpips("alex", off, weights.linear), *images)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_lpips_is_symmetric_grows_with_noise_and_takes_each_image_alone(case):
    weights = case("alex").weights
    truth, x = pair()
    values = metrics.lpips(weights, truth, x)
    np.testing.assert_allclose(metrics.lpips(weights, x, truth), values, rtol=1e-5)
    np.testing.assert_allclose(metrics.lpips(weights, x, x), 0, atol=1e-10)
    assert (values > metrics.lpips(weights, truth, truth + (x - truth) / 4)).all()
    singles = [metrics.lpips(weights, truth[i : i + 1], x[i : i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(values, singles, rtol=1e-5)
    x[1, 3, 3, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(metrics.lpips(weights, truth, x)), [False, True])


def test_jit_and_vmap_with_the_weights_as_an_argument_equal_one_call_each(case):
    weights = case("alex").weights
    truth, x = pair()
    lanes = np.stack([x, truth, x[::-1]])
    together = jax.jit(jax.vmap(metrics.lpips, in_axes=(None, None, 0)))(weights, truth, lanes)
    np.testing.assert_allclose(together, [metrics.lpips(weights, truth, lane) for lane in lanes], rtol=1e-5, atol=1e-10)


def test_grey_images_have_three_equal_channels(case):
    truth, x = pair(channels=1)
    expected = metrics.lpips(case("alex").weights, np.repeat(truth, 3, -1), np.repeat(x, 3, -1))
    np.testing.assert_allclose(metrics.lpips(case("alex").weights, truth, x), expected, rtol=1e-6)


def test_wrong_images_and_weights_are_refused(case):
    truth, x = pair(channels=2)
    weights = case("alex").weights
    with pytest.raises(ValueError, match="lpips of images with 2 channels: expected 1 or 3"):
        metrics.lpips(weights, truth, x)
    with pytest.raises(ValueError, match=r"truth has shape \(2, 34, 41, 2\), x has shape \(1, .*: expected the same"):
        metrics.lpips(weights, truth, x[:1])
    with pytest.raises(ValueError, match="truth has dtype uint8, x has dtype float32: expected floats"):
        metrics.lpips(weights, truth.astype(np.uint8), x)
    with pytest.raises(ValueError, match="weights of type str: expected what load_lpips returns"):
        metrics.lpips("alex", truth, x)


def test_weights_are_those_of_the_files_in_float32(case, tmp_path):
    backbone, linear, weights = case("squeeze").backbone_state, case("squeeze").linear_state, case("squeeze").weights
    assert weights.net == "squeeze"
    assert set(weights.features) == set(backbone)
    assert [leaf.shape for leaf in weights.linear] == [(channels,) for channels in CHANNELS["squeeze"]]
    for name, leaf in weights.features.items():
        np.testing.assert_array_equal(leaf, backbone[name])
    for k, leaf in enumerate(weights.linear):
        np.testing.assert_array_equal(leaf, linear[f"lin{k}.model.1.weight"].ravel())
    save_file({name: leaf.astype(np.float16) for name, leaf in backbone.items()}, tmp_path / "half.safetensors")
    half = metrics.load_lpips("squeeze", str(tmp_path / "half.safetensors"), str(case("squeeze").linear))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("net", ["vgg16", "resnet"])
def test_an_unknown_network_is_refused(net):
    with pytest.raises(ValueError, match=f"unknown net '{net}': known are "):
        metrics.load_lpips(net)


def test_what_is_not_given_is_named_with_where_to_get_it(case):
    backbone, linear = case("alex").backbone, case("alex").linear
    with pytest.raises(ValueError, match=r"^backbone=None: .*torchvision\.models\.alexnet\(weights='IMAGENET1K_V1'\)"):
        metrics.load_lpips("alex", linear=linear)
    message = r"^linear=None: .*lpips/weights/v0\.1/alex\.pth of github\.com/richzhang/PerceptualSimilarity"
    with pytest.raises(ValueError, match=message):
        metrics.load_lpips("alex", backbone)
    with pytest.raises(ValueError, match=r"^backbone=None: .*vgg16.*; linear=None: .*vgg\.pth"):
        metrics.load_lpips("vgg")


@pytest.mark.parametrize("which", ["net", "lin"])
@pytest.mark.parametrize("content", ["missing", "folder", "empty", "pickle", "header cut", "data cut"])
def test_what_is_no_safetensors_file_is_refused_by_path(case, which, content, tmp_path):
    paths = {"net": case("squeeze").backbone, "lin": case("squeeze").linear}
    whole = paths[which].read_bytes()
    path = paths[which] = tmp_path / f"{which}.safetensors"
    if content == "folder":
        path.mkdir()
    elif content != "missing":
        damaged = {"empty": b"", "pickle": b"\x80\x02}q\x00.", "header cut": whole[:99], "data cut": whole[:-1]}
        path.write_bytes(damaged[content])
    with pytest.raises(ValueError, match=rf"{which}\.safetensors: expected a readable \.safetensors file: "):
        metrics.load_lpips("squeeze", paths["net"], paths["lin"])


WRONG = [
    (
        "net",
        "features.6.squeeze.bias",
        None,
        r"expected the key 'features.6.squeeze.bias', found 'classifier.*, \.\.\.",
    ),
    ("net", "features.0.weight", np.zeros((64, 3, 5, 5)), r"of shape \(64, 3, 5, 5\): expected \(64, 3, 3, 3\)"),
    ("net", "features.0.bias", np.zeros(64, np.int32), "'features.0.bias' of type int32: expected finite numbers"),
    ("net", "features.0.bias", np.full(64, np.nan), "'features.0.bias' of type float64: expected finite numbers"),
    ("net", "features.13.bias", np.zeros(64), "'features.13.bias' belongs to no layer of the expected network"),
    ("lin", "lin6.model.1.weight", None, "expected the key 'lin6.model.1.weight', found 'lin0"),
    ("lin", "lin0.model.1.weight", np.zeros(64), r"of shape \(64,\): expected \(1, 64, 1, 1\)"),
    ("lin", "lin0.model.1.weight", np.full((1, 64, 1, 1), np.inf), "of type float64: expected finite numbers"),
    ("lin", "lin7.model.1.weight", np.zeros(64), "'lin7.model.1.weight' belongs to no layer"),
    ("lin", "classifier.weight", np.zeros(64), "'classifier.weight' belongs to no layer"),
]


@pytest.mark.parametrize(("which", "key", "value", "message"), WRONG)
def test_foreign_weights_are_refused_by_path_and_key(case, which, key, value, message, tmp_path):
    paths = {"net": case("squeeze").backbone, "lin": case("squeeze").linear}
    state = {**load_file(paths[which]), key: value}
    paths[which] = tmp_path / f"{which}.safetensors"
    save_file({name: array for name, array in state.items() if array is not None}, paths[which])
    with pytest.raises(ValueError, match=rf"{which}\.safetensors: .*{message}"):
        metrics.load_lpips("squeeze", paths["net"], paths["lin"])


def test_files_of_another_network_are_refused(case, tmp_path):
    alex, squeeze = case("alex"), case("squeeze")
    with pytest.raises(ValueError, match=r"net\.safetensors: 'features.0.weight' of shape \(64, 3, 3, 3\): expected"):
        metrics.load_lpips("alex", squeeze.backbone, alex.linear)
    with pytest.raises(
        ValueError, match=r"lin\.safetensors: 'lin1.model.1.weight' of shape \(1, 128, 1, 1\): expected"
    ):
        metrics.load_lpips("alex", alex.backbone, squeeze.linear)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none\.safetensors: expected the key 'features.0.weight', found no keys"):
        metrics.load_lpips("alex", tmp_path / "none.safetensors", alex.linear)


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("net", NETS)
def test_the_published_linear_layers_load(case, net):
    path = SHARED / f"lpips_v0.1_{net}_lin.safetensors"
    weights = metrics.load_lpips(net, case(net).backbone, path)
    state = load_file(path)
    for k, leaf in enumerate(weights.linear):
        np.testing.assert_array_equal(leaf, state[f"lin{k}.model.1.weight"].ravel())
    truth, x = pair() if net != "vgg" else pair(17, 32)
    assert (metrics.lpips(weights, truth, x) > metrics.lpips(weights, truth, (truth + x) / 2)).all()


@pytest.mark.shared
@needs_shared
def test_another_backbone_of_the_same_shapes_loads_though_its_number_is_not_lpips():
    linear = SHARED / "lpips_v0.1_squeeze_lin.safetensors"
    weights = metrics.load_lpips("squeeze", SHARED / "squeezenet1_1_caffe_features.safetensors", linear)
    assert np.isfinite(metrics.lpips(weights, *pair())).all()
