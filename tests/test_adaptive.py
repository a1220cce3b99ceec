"""Attackers who know the defense: at the truth their distance vanishes, and what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import adaptive, defenses, distances

KEY = jax.random.key(3)


def tree(seed):
    random = np.random.default_rng(seed)
    return {"a": jnp.asarray(random.normal(size=(40, 5)), jnp.float32), "b": jnp.asarray(random.normal(size=7))}


def sent(defense, update):
    return defense.update(update, defense.init(update), update)[0]


def squared(update, target):
    pairs = zip(jax.tree.leaves(update), jax.tree.leaves(target), strict=True)
    return sum(float(np.sum(np.square(np.asarray(a, np.float64) - b))) for a, b in pairs)


# Of defenses whose update says, to who knows of them, exactly what it came from: the defense, and the attacker.
EXACT = {
    "clip": (defenses.clip(0.5), adaptive.clip(0.5)),
    "clip by layer": (defenses.clip(0.5, per_layer=True), adaptive.clip(0.5, per_layer=True)),
    "prune": (defenses.prune(0.9), adaptive.prune()),
    "quantize": (defenses.quantize(2), adaptive.quantize(2)),
    "mixed": (defenses.quantize("mixed"), adaptive.quantize("mixed")),
    "gradient_dropout": (defenses.gradient_dropout(0.5, 0.0, key=KEY), adaptive.gradient_dropout(0.5, 0.0)),
    "learning_rate_perturbation": (
        defenses.learning_rate_perturbation(scale=2.0, key=KEY),
        adaptive.learning_rate_perturbation(scale=2.0),
    ),
    "adaptive_learning_rate_perturbation": (
        defenses.adaptive_learning_rate_perturbation(3, 2.0, 0.1, key=KEY),
        adaptive.adaptive_learning_rate_perturbation(3, 2.0, 0.1),
    ),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("distance", [distances.squared_l2, distances.cosine])
def test_the_distance_vanishes_at_the_truth_and_not_elsewhere(name, distance):
    defense, adaptation = EXACT[name]
    truth, other = tree(0), tree(1)
    received = sent(defense, truth)
    informed = adaptation.of(distance)
    assert squared(truth, received) > 1e-8
    size = squared(received, jax.tree.map(jnp.zeros_like, received))
    assert float(informed(truth, received)) < 1e-5 * (size if distance is distances.squared_l2 else 1)
    assert float(informed(other, received)) > 1e-3
    slopes = jax.grad(lambda u: informed(u, received))(other)
    assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(slopes))


def test_every_defense_has_its_counterpart():
    assert set(adaptive.NAMES) == set(defenses.NAMES)


def test_soteria_leaves_the_layer_out():
    informed = adaptive.soteria((0,)).of(distances.squared_l2)
    update, target = tree(0), tree(1)
    np.testing.assert_allclose(informed(update, target), squared({"b": update["b"]}, {"b": target["b"]}), rtol=1e-5)
    slopes = jax.grad(informed)(update, target)
    assert not np.any(slopes["a"])
    with pytest.raises(ValueError, match="^leaves: none"):
        adaptive.soteria(())


def test_entries_that_may_be_noise_are_left_out():
    keep, stddev = 0.7, 0.2
    truth = tree(0)
    received = sent(defenses.gradient_dropout(keep, stddev, key=KEY), truth)
    informed = adaptive.gradient_dropout(keep, stddev, confidence=3.0).of(distances.squared_l2)
    update = tree(1)
    expected = 0.0
    for u, t in zip(map(np.asarray, jax.tree.leaves(update)), map(np.asarray, jax.tree.leaves(received)), strict=True):
        sure = np.abs(t) > 0.6
        expected += np.sum(np.square(u[sure] - keep * t[sure]))
    np.testing.assert_allclose(informed(update, received), expected, rtol=1e-5)
    assert float(informed(truth, received)) < 1e-2 * expected


@pytest.mark.parametrize("factor", [0.3, 1.7, 5.0, -1.0])
def test_the_rate_is_that_of_least_squares_within_its_range(factor):
    update = tree(0)
    target = jax.tree.map(lambda leaf, noise: factor * leaf + 0.1 * noise, update, tree(1))
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]).astype(float) for t in (update, target)]
    solution = np.linalg.lstsq(flat[0][:, None], flat[1], rcond=None)[0][0]
    solution = np.clip(solution, 1e-3, 2.0)
    found = adaptive.learning_rate_perturbation().of(distances.squared_l2)(update, target)
    np.testing.assert_allclose(found, np.sum(np.square(solution * flat[0] - flat[1])), rtol=1e-4)


def test_quantization_passes_derivatives_straight_through():
    update, target = tree(0), tree(1)
    slopes = jax.grad(adaptive.quantize(3).of(distances.squared_l2))(update, target)
    rounded = sent(defenses.quantize(3), update)
    jax.tree.map(
        lambda found, q, t: np.testing.assert_allclose(found, 2 * (q - t), rtol=1e-4, atol=1e-5),
        slopes,
        rounded,
        target,
    )


@pytest.mark.parametrize(
    "adaptation",
    [
        adaptive.gaussian_noise(0.5, num_draws=3),
        adaptive.laplacian_noise(variance=0.25, num_draws=3),
        adaptive.dp_sgd(float("inf"), 0.5),
    ],
)
def test_noise_adds_a_constant_to_squared_l2(adaptation):
    """E|u + n - t|^2 = |u - t|^2 + E|n|^2, exactly so with each draw beside its opposite."""
    informed, target = adaptation.of(distances.squared_l2), tree(9)
    gaps = [float(informed(tree(i), target)) - squared(tree(i), target) for i in range(3)]
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)
    assert gaps[0] == pytest.approx(207 * 0.25, rel=0.4)


def test_a_cosine_expects_less_under_noise():
    """Against the closed form at many entries: the noise adds to the candidate's norm what it added to the other's."""
    truth = {"a": jax.random.normal(KEY, (20_000,))}
    stddev = 2.0
    received = sent(defenses.gaussian_noise(stddev, key=jax.random.key(8)), truth)
    found = float(adaptive.gaussian_noise(stddev).of(distances.cosine)(truth, received))
    plain = float(distances.cosine(truth, received))
    assert plain == pytest.approx(1 - 1 / np.sqrt(1 + stddev**2), abs=0.02)
    assert found == pytest.approx(1 - 1 / (1 + stddev**2), abs=0.02)


def test_an_expected_cosine_prefers_larger_gradients_than_the_truths():
    truth = {"a": jax.random.normal(KEY, (2_000,))}
    received = sent(defenses.gaussian_noise(2.0, key=jax.random.key(8)), truth)
    informed = adaptive.gaussian_noise(2.0).of(distances.cosine)
    larger = jax.tree.map(lambda leaf: 10 * leaf, truth)
    assert float(informed(larger, received)) < float(informed(truth, received)) - 0.1
    np.testing.assert_allclose(distances.cosine(larger, received), distances.cosine(truth, received), rtol=1e-5)


def test_a_chain_is_adapted_to_in_its_order(scenario):
    case = scenario("mlp")
    observe = jl.observe.adapted(jl.observe.adapted(case.observe, adaptive.clip(0.1)), adaptive.quantize(2))
    update = case.leak.update
    target = jax.tree.map(lambda leaf: leaf + 0.01, update)
    found = observe.compare(distances.squared_l2, update, target, num_examples=1)
    both = sent(defenses.quantize(2), sent(defenses.clip(0.1), update))
    other = sent(defenses.clip(0.1), sent(defenses.quantize(2), update))
    np.testing.assert_allclose(found, squared(both, target), rtol=1e-4)
    assert abs(squared(both, target) - squared(other, target)) > 1e-3 * squared(both, target)


def test_strengths_are_those_of_a_gradient_whatever_the_update(scenario):
    case = scenario("mlp")
    observe = jl.observe.adapted(jl.observe.one_batch(case.loss_fn, learning_rate=1e-3), adaptive.clip(0.1))
    update = jax.tree.map(lambda leaf: 1e-3 * leaf, case.leak.update)
    found = observe.compare(distances.squared_l2, update, jax.tree.map(jnp.zeros_like, update), num_examples=1)
    np.testing.assert_allclose(found, 0.1**2, rtol=1e-4)


@pytest.mark.parametrize("attack", jl.attacks.NAMES)
def test_every_attack_takes_every_adaptation(scenario, attack):
    case = scenario("chain" if attack in ("rgap", "copa") else "cnn")
    for name, make in adaptive.NAMES.items():
        settings = {
            "clip": {"max_norm": 1.0},
            "dp_sgd": {"max_norm": 1.0, "stddev": 0.1},
            "gaussian_noise": {"stddev": 0.1},
            "laplacian_noise": {"stddev": 0.1},
            "gradient_dropout": {"keep": 0.5, "stddev": 0.1},
            "soteria": {"leaves": defenses.soteria_layer(case.loss_fn, case.params, case.truth)},
            "adaptive_learning_rate_perturbation": {"num_labels": 1, "mean_labels": 1, "zeta": 0.1},
        }.get(name, {})
        observe = jl.observe.adapted(case.observe, make(**settings))
        made = jl.attacks.NAMES[attack](observe, shape=case.shape, num_classes=case.num_classes, num_steps=2)
        state = jax.eval_shape(made.init, KEY, case.leak)
        jax.eval_shape(made.step, KEY, state, case.leak)


@pytest.mark.parametrize("name", ["clip", "learning_rate_perturbation"])
def test_who_knows_rebuilds_what_who_does_not_cannot(scenario, name):
    """One dense layer: an image that the plain attacker misses comes back exactly.

    Adam, since L-BFGS without a line search does not get far on a distance whose size is that of the defense.
    """
    case = scenario("dense")
    defense, adaptation = {
        "clip": (defenses.clip(0.1), adaptive.clip(0.1)),
        "learning_rate_perturbation": EXACT["learning_rate_perturbation"],
    }[name]
    leak = jl.Leak(case.params, jl.observe.defended(case.observe, defense)(case.params, case.truth))
    found = []
    for observe in (case.observe, jl.observe.adapted(case.observe, adaptation)):
        attack = jl.attacks.dlg_adam(
            observe,
            shape=case.shape,
            num_classes=case.num_classes,
            num_steps=800,
            labels=jl.labels.idlg,
            learning_rate=0.05,
            mean=0.5,
            stddev=0.25,
        )
        best = jl.best_of(jl.run(attack, leak, jax.random.split(KEY, 4)))
        found.append(float(jl.metrics.psnr(case.truth.x, best.batch.x)[0]))
    assert found[0] < 25
    assert found[1] >= 40


def test_an_unknown_rate_is_no_hindrance_to_who_estimates_it(scenario):
    case = scenario("mlp")
    hidden = jl.observe.one_batch(case.loss_fn)
    arguments = {"shape": case.shape, "num_classes": case.num_classes, "num_steps": 1}
    with pytest.raises(ValueError, match="learning_rate=None"):
        jl.attacks.dlg(hidden, **arguments)
    jl.attacks.dlg(jl.observe.adapted(hidden, adaptive.learning_rate_perturbation()), **arguments)


def test_several_rounds_are_adapted_one_by_one(scenario):
    case = scenario("mlp")
    both = jl.observe.rounds([case.observe, case.observe])
    with pytest.raises(ValueError, match="^observe has several rounds"):
        jl.observe.adapted(both, adaptive.prune())
    jl.observe.rounds([jl.observe.adapted(case.observe, adaptive.prune())] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adaptive.clip(0.0), "^max_norm=0.0: expected > 0$"),
        (lambda: adaptive.gradient_dropout(0.0, 0.1), "^keep=0.0"),
        (lambda: adaptive.gradient_dropout(0.5, -0.1), "^stddev=-0.1"),
        (lambda: adaptive.gradient_dropout(0.5, 0.1, confidence=-1), "^confidence=-1: expected >= 0$"),
        (lambda: adaptive.quantize(1), "^bits=1"),
        (lambda: adaptive.learning_rate_perturbation(-0.5), "^spread=-0.5"),
        (lambda: adaptive.gaussian_noise(-1.0), "^stddev=-1.0"),
        (lambda: adaptive.gaussian_noise(1.0, num_draws=0), "^num_draws=0: expected >= 1$"),
        (lambda: adaptive.dp_sgd(-1.0, 0.1), "^max_norm=-1.0"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
