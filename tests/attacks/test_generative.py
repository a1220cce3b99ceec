"""Attacks through generators: what they minimise, against plain formulas; what they find, where it is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generator_networks import pixel_network

import jaxleak as jl
from jaxleak import generators, networks
from jaxleak.attacks import search
from jaxleak.attacks.ggl import DISTANCES, TRANSFORMS
from jaxleak.generators import Network

KEY = jax.random.key(0)
NUM_CODES = 4


def linear_network(image_shape, *, num_classes=None, seed=3):
    """A few codes to an image, through a fixed matrix; each class has a matrix of its own where there are classes."""
    size = int(np.prod(image_shape))
    matrices = 0.05 * jax.random.normal(jax.random.key(seed), (num_classes or 1, NUM_CODES, size))

    def apply(weights, code, y=None):
        if num_classes is None:
            return (0.5 + code @ weights[0]).reshape(-1, *image_shape)
        one = jnp.tensordot(jax.nn.one_hot(y, num_classes) if y.ndim == 1 else y, weights, 1)
        return (0.5 + jnp.einsum("nk,nkp->np", code, one)).reshape(-1, *image_shape)

    return Network(lambda key: matrices, apply, (NUM_CODES,))


def planted(case, network, code, y):
    """A leak of an image that the network can make."""
    x = network.apply(network.init(KEY), code, y)
    return x, case.leak_of(jl.Batch(x, y))


def make(case, name, **settings):
    return jl.attacks.NAMES[name](case.observe, shape=case.shape, num_classes=case.num_classes, **settings)


@functools.cache
def gradient(loss_fn):
    return jax.jit(jax.grad(loss_fn))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def update_of(case, leak, x, y):
    return gradient(case.loss_fn)(leak.params, jl.Batch(x, y))


class TestObjective:
    """The value that a first step reports is the plain formula, in numpy."""

    def found(self, case, name, **settings):
        attack = make(case, name, labels=case.truth.y, num_steps=2, **settings)
        state = jax.jit(attack.init)(KEY, case.leak)
        return state, jax.jit(attack.step)(KEY, state, case.leak)

    def cosine(self, case, x):
        a, b = flat(update_of(case, case.leak, x, case.truth.y)), flat(case.leak.update)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def test_of_gias(self, scenario):
        case = scenario("mlp", shape=(2, 6, 6, 2))
        network = linear_network(case.shape[1:])
        weights = {"total_variation": 0.3, "kl": 0.2, "weights_l2": 0.7, "stddev": (0.2, 0.5)}
        state, new = self.found(case, "gias", generator=network, **weights)
        latent = state.candidate.latent
        assert latent.weights.shape == (2, *network.init(KEY).shape)
        x = np.concatenate(
            [network.apply(w, z[None]) for w, z in zip(latent.weights, latent.code, strict=True)]
        ).astype(np.float64)
        scaled = x / np.array(weights["stddev"])
        expected = self.cosine(case, x) + 0.3 * (
            np.abs(np.diff(scaled, axis=1)).mean() + np.abs(np.diff(scaled, axis=2)).mean()
        )
        code = np.asarray(latent.code, np.float64)
        expected += 0.2 * 0.5 * np.sum(code.mean(1) ** 2 + code.var(1) - 1 - np.log(code.var(1)))
        np.testing.assert_allclose(new.value, expected, rtol=1e-4)
        np.testing.assert_allclose(new.loss, self.cosine(case, x), rtol=1e-4)

    def test_weights_that_moved_count_by_their_distance(self, scenario):
        case = scenario("mlp")
        network = linear_network(case.shape[1:])
        values = []
        for weight in (0.0, 0.7):
            state, _ = self.found(case, "gias", generator=network, kl=0.0, total_variation=0.0, weights_l2=weight)
            moved = state.candidate.latent._replace(weights=state.candidate.latent.weights + 0.5)
            state = state._replace(candidate=state.candidate._replace(latent=moved), taken=state.taken + 1)
            attack = make(
                case, "gias", labels=case.truth.y, num_steps=2, generator=network, kl=0.0, total_variation=0.0,
                weights_l2=weight,
            )  # fmt: skip
            values.append(float(jax.jit(attack.step)(KEY, state, case.leak).value))
        size = network.init(KEY).size
        np.testing.assert_allclose(values[1] - values[0], 0.7 * 0.5 * np.sqrt(size), rtol=1e-4)

    def test_of_ggl(self, scenario):
        case = scenario("mlp")
        network = linear_network(case.shape[1:])
        attack = make(case, "ggl", labels=case.truth.y, num_steps=2, generator=network, kl=0.1, algorithm="adam")
        state = jax.jit(attack.init)(KEY, case.leak)
        new = jax.jit(attack.step)(KEY, state, case.leak)
        code = np.asarray(state.candidate.latent, np.float64)
        x = network.apply(network.init(KEY), state.candidate.latent)
        moved = flat(update_of(case, case.leak, x, case.truth.y)) - flat(case.leak.update)
        expected = moved @ moved / len(jax.tree.leaves(case.leak.update))
        expected += 0.1 * 0.5 * np.sum(code.mean(1) ** 2 + code.var(1) - 1 - np.log(code.var(1)))
        np.testing.assert_allclose(new.value, expected, rtol=1e-4)


# Adam at its constant rate ends nearby.
@pytest.mark.parametrize(("algorithm", "floor"), [("CMA_ES", 40), ("adam", 25)])
def test_ggl_finds_a_code_that_was_planted(scenario, algorithm, floor):
    case = scenario("mlp")
    network, code = linear_network(case.shape[1:]), jax.random.normal(jax.random.key(5), (1, NUM_CODES))
    x, leak = planted(case, network, code, case.truth.y)
    attack = make(case, "ggl", generator=network, algorithm=algorithm, num_steps=150, kl=0.0, population_size=16)
    best = jl.best_of(jl.run(attack, leak, jax.random.split(KEY, 3)))
    assert float(jl.metrics.psnr(x, best.batch.x)[0]) >= floor


def test_a_conditional_generator_is_given_the_inferred_label(scenario):
    """The image of another class is another: only the right label finds it."""
    case = scenario("mlp")
    network = linear_network(case.shape[1:], num_classes=case.num_classes)
    x, leak = planted(case, network, jax.random.normal(jax.random.key(5), (1, NUM_CODES)), case.truth.y)
    found = {}
    for name, labels in {"inferred": jl.labels.inferred, "wrong": (case.truth.y + 1) % case.num_classes}.items():
        attack = make(case, "ggl", generator=network, labels=labels, num_steps=100, kl=0.0, population_size=16)
        result = jl.run(attack, leak, KEY)
        found[name] = float(jl.metrics.psnr(x, result.batch.x)[0])
    assert found["inferred"] >= 40
    assert found["wrong"] < 30


def test_codes_alone_stay_in_the_generators_range_and_weights_leave_it(scenario):
    """The truth is no image of the network: GIAS' second stage brings it nearer than GGL can."""
    case = scenario("mlp")
    network = linear_network(case.shape[1:])
    settings = {"generator": network, "kl": 0.0}
    keys = jax.random.split(KEY, 2)
    inside = jl.best_of(jl.run(make(case, "ggl", num_steps=100, population_size=16, **settings), case.leak, keys))
    attack = make(case, "gias", num_steps=400, weights_learning_rate=1e-2, total_variation=0.0, **settings)
    outside = jl.best_of(jl.run(attack, case.leak, keys))
    gain = jl.metrics.psnr(case.truth.x, outside.batch.x) - jl.metrics.psnr(case.truth.x, inside.batch.x)
    assert float(gain[0]) >= 3


def test_bounded_codes_are_within_minus_one_and_one(scenario):
    case = scenario("mlp")
    network = linear_network(case.shape[1:])
    generator = generators.latent(network, case.shape, bounded=True)
    far = 100 * jnp.ones((1, NUM_CODES))
    np.testing.assert_allclose(generator.apply(far), network.apply(network.init(KEY), jnp.ones((1, NUM_CODES))))


def test_a_population_of_weights_of_its_own_for_each_image(scenario):
    case = scenario("mlp", shape=(2, 6, 6, 2))
    network = linear_network(case.shape[1:])
    own, shared = (generators.mixed(network, case.shape, per_image=each) for each in (True, False))
    latent = own.init(KEY)
    np.testing.assert_allclose(own.apply(latent), shared.apply(shared.init(KEY)), rtol=1e-5)
    changed = latent._replace(weights=latent.weights.at[1].multiply(2.0))
    np.testing.assert_array_equal(own.apply(changed)[0], own.apply(latent)[0])
    assert not np.allclose(own.apply(changed)[1], own.apply(latent)[1])


@pytest.mark.parametrize("name", ["cinet", "deep_image_prior"])
def test_codes_of_a_network_whose_weights_are_searched_stay(scenario, name):
    case = scenario("dense")
    attack = make(case, name, generator=pixel_network(case.shape[1:]), num_steps=3)
    state = jax.jit(attack.init)(KEY, case.leak)
    new = jax.jit(attack.step)(KEY, state, case.leak)
    np.testing.assert_array_equal(new.candidate.latent.code, state.candidate.latent.code)
    assert not np.array_equal(new.candidate.latent.weights["shift"], state.candidate.latent.weights["shift"])


@pytest.mark.parametrize("name", ["gias", "ggl", "igims", "cinet", "deep_image_prior"])
def test_without_a_generator_an_untrained_network_stands_in(scenario, name):
    """Traced only: compiling the default networks takes long."""
    case = scenario("dense")
    attack = make(case, name, num_steps=4)
    state = jax.eval_shape(attack.init, KEY, case.leak)
    assert jax.eval_shape(attack.step, KEY, state, case.leak).loss.shape == ()
    assert jax.eval_shape(attack.reconstruct, state, case.leak).batch.x.shape == case.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cinet", "deep_image_prior"])
def test_untrained_networks_find_a_photograph(scenario, name):
    """The defaults, on a smooth image of 6 x 6 pixels through one dense layer, where the closed form is the truth."""
    case = scenario("dense")
    result = jl.run(make(case, name, num_steps=1000), case.leak, KEY)
    assert float(jl.metrics.psnr(case.truth.x, result.batch.x)[0]) >= 25


class TestTransforms:
    """What GGL does to a candidate's gradient, against numpy and against our own defenses."""

    @pytest.fixture
    def two(self):
        keys = jax.random.split(KEY, 4)
        one = {"a": jax.random.normal(keys[0], (6, 5)), "b": jax.random.normal(keys[1], (7,))}
        other = {"a": jax.random.normal(keys[2], (6, 5)), "b": jax.random.normal(keys[3], (7,))}
        return one, other

    def test_clipping_is_to_the_norm_of_the_received(self, two):
        update, target = two
        small = jax.tree.map(lambda leaf: 0.1 * leaf, target)
        found = TRANSFORMS["clip"](update, small)
        factor = np.linalg.norm(flat(small)) / np.linalg.norm(flat(update))
        np.testing.assert_allclose(flat(found), factor * flat(update), rtol=1e-4)
        np.testing.assert_allclose(flat(TRANSFORMS["clip"](small, target)), flat(small), rtol=1e-6)

    def test_pruning_cuts_as_large_a_share_of_each_leaf_as_was_cut(self, two):
        update, target = two
        defense = jl.defenses.prune(0.6)
        received, _ = defense.update(target, defense.init(target))
        share = np.mean(flat(received) == 0)
        found = TRANSFORMS["prune"](update, received)
        for name, leaf in update.items():
            sizes = np.abs(np.asarray(leaf))
            expected = np.where(sizes < np.quantile(sizes, share), 0, leaf)
            np.testing.assert_allclose(found[name], expected, rtol=1e-6)

    def test_soteria_masks_the_rows_that_did_not_arrive(self, two):
        update, target = two
        received = {**target, "a": target["a"].at[jnp.array([1, 4])].set(0.0)}
        found = TRANSFORMS["soteria"](update, received)
        np.testing.assert_array_equal(np.flatnonzero(~np.any(found["a"], axis=1)), [1, 4])
        np.testing.assert_array_equal(found["a"][0], update["a"][0])
        np.testing.assert_array_equal(found["b"], update["b"])

    def test_noise_is_left_alone(self, two):
        update, target = two
        np.testing.assert_array_equal(flat(TRANSFORMS["gaussian_noise"](update, target)), flat(update))

    def test_knowing_of_clipping_finds_what_it_hid(self, scenario):
        """A squared L2 with a clipped gradient is not least at the truth; with both clipped it is."""
        case = scenario("mlp")
        network = linear_network(case.shape[1:])
        x, leak = planted(case, network, jax.random.normal(jax.random.key(5), (1, NUM_CODES)), case.truth.y)
        norm = float(np.linalg.norm(flat(leak.update)))
        defense = jl.defenses.clip(0.3 * norm)
        clipped = jl.Leak(leak.params, defense.update(leak.update, defense.init(leak.update))[0])
        settings = {"generator": network, "num_steps": 100, "kl": 0.0, "population_size": 16}
        found = {
            known: float(
                jl.metrics.psnr(x, jl.run(make(case, "ggl", known_defense=known, **settings), clipped, KEY).batch.x)[0]
            )
            for known in ((), "clip")
        }
        assert found["clip"] >= 35
        assert found["clip"] >= found[()] + 5

    @pytest.mark.parametrize(("known", "defense"), [("prune", jl.defenses.prune(0.5)), ("clip", jl.defenses.clip(0.1))])
    def test_by_a_cosine_no_size_has_to_be_known(self, scenario, known, defense):
        """Of what was defended and then multiplied by a learning rate that nobody knows."""
        case = scenario("mlp")
        network = linear_network(case.shape[1:])
        x, leak = planted(case, network, jax.random.normal(jax.random.key(5), (1, NUM_CODES)), case.truth.y)
        received = defense.update(leak.update, defense.init(leak.update))[0]
        leak = jl.Leak(leak.params, jax.tree.map(lambda leaf: 0.003 * leaf, received))
        attack = jl.attacks.ggl(
            jl.observe.one_batch(case.loss_fn),
            shape=case.shape,
            num_classes=case.num_classes,
            generator=network,
            num_steps=100,
            kl=0.0,
            population_size=16,
            distance="cosine",
            known_defense=known,
        )
        found = jl.run(attack, leak, KEY).batch.x
        assert float(jl.metrics.psnr(x, found)[0]) >= 35


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gias", {"code_share": 0.0}, "^code_share=0.0: expected a share between 0 and 1, both excluded$"),
        ("gias", {"weights_learning_rate": 0.0}, "^weights_learning_rate=0.0: expected > 0$"),
        ("gias", {"kl": -1.0}, "^kl=-1.0: expected >= 0$"),
        ("igims", {"rounds": 0}, "^rounds=0: expected >= 1$"),
        ("igims", {"shrink": 1.5}, "^shrink=1.5: expected above 0, and at most 1$"),
        ("igims", {"algorithm": "CMAES"}, "^unknown algorithm 'CMAES': known are "),
        ("ggl", {"known_defense": "prun"}, "^unknown known_defense 'prun': known are prune"),
        ("ggl", {"distance": "l1"}, "^unknown distance 'l1': known are "),
        ("ggl", {"initial_stddev": 0.0}, "^stddev=0.0: expected > 0$"),
        ("cinet", {"decay": "linear"}, "^unknown decay 'linear': known are "),
        ("cinet", {"total_variation": -1.0}, "^total_variation=-1.0: expected >= 0$"),
    ],
)
def test_wrong_settings_are_refused(scenario, name, settings, message):
    with pytest.raises(ValueError, match=message):
        make(scenario("dense"), name, **{"generator": pixel_network((6, 6, 2)), **settings})


@pytest.mark.parametrize("name", ["gias", "ggl", "igims", "cinet", "deep_image_prior"])
def test_a_generator_of_other_images_is_refused(scenario, name):
    message = r"^shape=\(1, 6, 6, 2\): the generator makes images of shape \(5, 6, 2\): expected \(6, 6, 2\)$"
    with pytest.raises(ValueError, match=message):
        make(scenario("dense"), name, generator=pixel_network((5, 6, 2)))


def test_distances_of_ggl_are_named():
    assert set(DISTANCES) == {"l2", "cosine"}
    assert set(search.DECAYS) == {"none", "steps", "cosine"}
    assert networks.over_parameterised((1, 8, 8, 3), width=4).code_shape == (128,)


class TestMetaLearning:
    """GIML: images of the clients are a code times one direction, which the generator has to find from gradients."""

    @pytest.fixture
    def learning(self, scenario):
        case = scenario("mlp")
        settings = {"shape": case.shape, "num_classes": case.num_classes, "generator": linear_network(case.shape[1:])}
        return case, jl.attacks.giml(
            case.observe, num_steps=40, weights_learning_rate=1e-2, kl=0.0, total_variation=0.0, **settings
        )

    def direction(self, case):
        return 0.2 * jax.random.normal(jax.random.key(11), case.shape)

    def leaks(self, case, count):
        direction = self.direction(case)
        codes = jnp.linspace(-1.0, 1.0, count)
        found = [case.leak_of(jl.Batch(jnp.clip(0.5 + code * direction, 0, 1), case.truth.y)) for code in codes]
        update = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(leak.update for leak in found))
        return jl.Leak(case.params, update)

    def test_a_meta_step_is_adam_along_the_mean_of_what_attacks_moved(self, learning):
        """The first step of Adam has the rate's length in every weight, towards the mean of the clients' weights."""
        case, (init, step) = learning
        state = init(KEY)
        new = jax.jit(step)(KEY, state, self.leaks(case, 3))
        moved = np.asarray(new.weights - state.weights)
        np.testing.assert_allclose(np.abs(moved), 1e-2, rtol=1e-3)
        assert float(new.loss) < 1

    def test_the_generator_learns_what_the_clients_images_have_in_common(self, learning):
        """Their one direction, of which its four random ones hold next to nothing, by least squares in numpy."""
        case, (init, step) = learning
        leaks, step, state = self.leaks(case, 3), jax.jit(step), init(KEY)

        def missing(weights):
            basis, _ = np.linalg.qr(np.asarray(weights[0], np.float64).T)
            direction = np.ravel(np.asarray(self.direction(case), np.float64))
            direction /= np.linalg.norm(direction)
            return np.linalg.norm(direction - basis @ (basis.T @ direction))

        assert missing(state.weights) > 0.9
        for i in range(30):
            state = step(jax.random.fold_in(KEY, i), state, leaks)
        assert missing(state.weights) < 0.4
