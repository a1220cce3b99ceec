"""GradInversion: its objective term by term against plain formulas, its group against seeds apart, its statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data

import jaxleak as jl
from jaxleak.attacks import gradinversion

PLAIN = {"group": 0.0, "batch_norm": 0.0, "total_variation": 0.0, "l2": 0.0, "langevin": 0.0}
KEY = jax.random.key(0)


def trained(case):
    """The case with running statistics that are not those of a fresh model."""
    generator = np.random.default_rng(7)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape), leaf.dtype), case.params["batch_stats"]
    )
    params = {**case.params, "batch_stats": state}
    return jl.Leak(params, jax.jit(case.observe)(params, case.truth), case.shape[0])


def make(case, **settings):
    settings = {"shape": case.shape, "num_classes": case.num_classes, "num_seeds": 2, "num_steps": 40, **settings}
    return gradinversion(case.observe, **settings)


def norm(*arrays):
    return sum(float(np.sqrt(np.sum(np.square(np.asarray(a, np.float64))))) for a in arrays)


def total_variation(x):
    """DeepInversion's: four directions, norms over the whole batch."""
    pairs = [
        (x[:, :, 1:], x[:, :, :-1]),
        (x[:, 1:], x[:, :-1]),
        (x[:, 1:, 1:], x[:, :-1, :-1]),
        (x[:, 1:, :-1], x[:, :-1, 1:]),
    ]
    return sum(norm(a - b) for a, b in pairs)


def statistics(case, params, x):
    """Means and variances of what the two batch norms of the small residual network are fed, by flax and numpy."""
    _, seen = case.model.apply(params, x, capture_intermediates=True, mutable=["intermediates"])
    inputs = [np.asarray(seen["intermediates"][name]["__call__"][0], np.float64) for name in ("Conv_0", "Conv_1")]
    return [(z.mean((0, 1, 2)), z.var((0, 1, 2))) for z in inputs]


def batch_norm(case, leak, x):
    state = leak.params["batch_stats"]
    running = [state[name] for name in ("BatchNorm_0", "BatchNorm_1")]
    return sum(
        norm(mean - one["mean"], var - one["var"])
        for (mean, var), one in zip(statistics(case, leak.params, x), running, strict=True)
    )


@functools.cache
def gradient(loss_fn):
    return jax.jit(jax.grad(loss_fn))


def distance(case, leak, x, y, squared=False):
    update = gradient(case.loss_fn)(leak.params, jl.Batch(x, y))["params"]
    norms = [norm(a - b) for a, b in zip(*map(jax.tree.leaves, (update, leak.update["params"])), strict=True)]
    return sum(one**2 for one in norms) if squared else sum(norms)


TERMS = {
    "gradient": lambda case, leak, x, z, y: distance(case, leak, x, y),
    "total_variation": lambda case, leak, x, z, y: total_variation(z),
    "l2": lambda case, leak, x, z, y: norm(z),
    "batch_norm": lambda case, leak, x, z, y: batch_norm(case, leak, x),
}


def at(attack, leak, latents):
    """The state of an attack whose seeds stand there."""
    state = jax.jit(attack.init)(KEY, leak)
    return state._replace(
        seeds=state.seeds._replace(candidate=state.seeds.candidate._replace(latent=jnp.asarray(latents)))
    )


def direction(case, leak, latents, **settings):
    """The derivative that the optimizer gets, from what plain Adam remembers after its first step."""
    attack = make(case, num_seeds=len(latents), labels=case.truth.y, **{**PLAIN, "gradient": 0.0, **settings})
    state = at(attack, leak, latents)
    return jax.jit(attack.step)(KEY, state, leak).seeds.optimizer[0].mu.latent / 0.1


@pytest.fixture
def small(scenario):
    """In float64: a residual network with statistics that are not at rest, a leak, and two seeds."""
    # Made before, since others have it as well.
    case = scenario("resnet", shape=(2, 6, 6, 2))
    with jax.enable_x64(True):
        leak = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), trained(case))
        yield case, leak, np.random.default_rng(0).normal(size=(2, *case.shape))


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_the_plain_formula(small, term):
    """Along random directions, by finite differences of a formula in numpy."""
    case, leak, latents = small
    found = direction(case, leak, latents, **{term: 3.0})
    generator = np.random.default_rng(1)
    for latent, slope in zip(latents, found, strict=True):
        for _ in range(2):
            along = generator.normal(size=latent.shape)
            ends = [
                TERMS[term](case, leak, jnp.asarray(0.5 + 0.25 * z), z, case.truth.y)
                for z in (latent + 1e-5 * along, latent - 1e-5 * along)
            ]
            np.testing.assert_allclose(np.sum(slope * along), 3.0 * (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


def test_the_squared_form_is_the_sum_of_squares(small):
    case, leak, _ = small
    attack = make(case, labels=case.truth.y, squared=True, **PLAIN)
    result = jax.jit(attack.reconstruct)(jax.jit(attack.init)(KEY, leak), leak)
    np.testing.assert_allclose(result.loss, distance(case, leak, result.batch.x, case.truth.y, True), rtol=1e-5)


def test_terms_add_up(small):
    case, leak, latents = small
    weights = {"gradient": 0.5, "total_variation": 0.3, "l2": 0.2, "batch_norm": 0.7}
    # One program for all of them.
    traced = jax.jit(lambda weights: direction(case, leak, latents, **weights))
    apart = sum(traced({**dict.fromkeys(weights, 0.0), name: weight}) for name, weight in weights.items())
    together = traced(weights)
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-8)


def test_agreement_pulls_along_the_way_to_the_mean(small):
    """d/dx |x - E|_2 at fixed E is the unit vector from E to x."""
    case, leak, latents = small
    latents = np.concatenate([latents, 2 * latents[:1]])
    found = direction(case, leak, latents, group=3.0, registered=False)
    apart = latents - latents.mean(0)
    expected = [3.0 * one / np.linalg.norm(one) for one in apart]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_seeds_that_agree_are_not_pulled(small):
    case, leak, latents = small
    # Four, of which the mean is exact: the norm has a slope of one as soon as anything is not zero.
    found = direction(case, leak, np.stack([latents[0]] * 4), group=3.0)
    np.testing.assert_allclose(found, 0.0, atol=1e-8)


def photographs(num_seeds=8):
    """Seeds that see one photograph, some of them shifted: in normalised units, and by what they have to be moved."""
    image = skimage.data.astronaut().astype(np.float32)[::4, ::4] / 255
    shifts = [(0, 0)] * (num_seeds - 2) + [(3, -2), (-4, 1)]
    seeds = [image[30 + a : 62 + a, 30 + b : 62 + b] for a, b in shifts]
    return (np.stack(seeds)[:, None] - 0.5) / 0.25, np.array(shifts)


def tiny_case():
    """A model that takes no time, on photographs of 32x32."""
    loss_fn = jl.cross_entropy(lambda params, x: jnp.mean(x, axis=(1, 2)) @ params)
    observe = jl.observe.gradient(loss_fn)
    truth = jl.Batch(jnp.full((1, 32, 32, 3), 0.3), jnp.array([1]))
    params = jnp.eye(3)
    return observe, jl.Leak(params, observe(params, truth))


def test_registered_seeds_agree_on_the_shifted_image():
    """E before a quarter of the steps is the mean of pixels; after it, of images moved onto one another."""
    observe, leak = tiny_case()
    latents, shifts = photographs()
    attack = gradinversion(
        observe,
        shape=(1, 32, 32, 3),
        num_classes=3,
        num_steps=8,
        num_seeds=8,
        learning_rate=1e-6,
        **{**PLAIN, "group": 1.0, "gradient": 0.0},
    )
    state, pulls = at(attack, leak, latents), []
    for i in range(4):
        before = np.asarray(state.seeds.optimizer[0].mu.latent)
        state = jax.jit(attack.step)(jax.random.fold_in(KEY, i), state, leak)
        pulls.append((np.asarray(state.seeds.optimizer[0].mu.latent) - 0.9 * before) / 0.1)
        found = np.asarray(state.seeds.memory.offsets)[:, 0]
        np.testing.assert_array_equal(found, shifts if i >= 1 else 0 * shifts)
    moved = [
        scipy.ndimage.shift(x[0], (*by, 0), order=0, mode="nearest") for x, by in zip(latents, shifts, strict=True)
    ]
    for pull, agreed in ((pulls[1], latents.mean(0)[0]), (pulls[2], np.mean(moved, axis=0))):
        apart = latents[:, 0] - agreed
        expected = apart / np.linalg.norm(apart.reshape(8, -1), axis=1)[:, None, None, None]
        np.testing.assert_allclose(pull[:, 0], expected, atol=1e-4)


def test_registrations_are_as_far_apart_as_they_are_told():
    """After a quarter of eight steps, every third: the second and the fifth."""
    observe, leak = tiny_case()
    latents, shifts = photographs()
    settings = {"num_steps": 8, "register_every": 3, "learning_rate": 1e-6, **PLAIN, "group": 1.0, "gradient": 0.0}
    attack = gradinversion(observe, shape=(1, 32, 32, 3), num_classes=3, num_seeds=8, **settings)
    state, step = at(attack, leak, latents), jax.jit(attack.step)
    for i in range(5):
        state = step(KEY, state, leak)
        found = np.asarray(state.seeds.memory.offsets)[:, 0]
        np.testing.assert_array_equal(found, (0 if i == 0 else 1 if i < 4 else -1) * np.asarray(shifts))
        if i == 1:
            # From here on, of images moved to the other side.
            pairs = zip(latents, 2 * shifts, strict=True)
            moved = [scipy.ndimage.shift(x[0], (*by, 0), order=0, mode="nearest") for x, by in pairs]
            seeds = state.seeds._replace(candidate=state.seeds.candidate._replace(latent=jnp.asarray(moved)[:, None]))
            state = state._replace(seeds=seeds)


@pytest.mark.parametrize("registered", [True, False])
def test_the_consensus_is_the_mean_of_the_seeds(registered):
    observe, leak = tiny_case()
    latents, shifts = photographs()
    settings = {"shape": (1, 32, 32, 3), "num_classes": 3, "num_steps": 8, **PLAIN}
    attack = gradinversion(observe, answer="consensus", registered=registered, **settings)
    result = attack.reconstruct(at(attack, leak, latents), leak)
    images = 0.5 + 0.25 * latents[:, 0]
    if registered:
        moved = zip(images, shifts, strict=True)
        images = np.stack([scipy.ndimage.shift(x, (*by, 0), order=0, mode="nearest") for x, by in moved])
    np.testing.assert_allclose(result.batch.x[0], images.mean(0), atol=1e-5)
    update = observe(leak.params, result.batch)
    np.testing.assert_allclose(result.loss, np.linalg.norm(update - leak.update), rtol=1e-4)


def test_without_agreement_seeds_are_as_apart(scenario):
    """A group of k is k groups of one, from the same starts."""
    case = scenario("mlp")
    together, alone = (make(case, num_seeds=count, group=0.0, langevin=0.0) for count in (3, 1))
    state = jax.jit(together.init)(KEY, case.leak)
    new, step = jax.jit(together.step)(KEY, state, case.leak), jax.jit(alone.step)
    losses, reconstruct = [], jax.jit(alone.reconstruct)
    for i in range(3):
        moved = step(KEY, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], state), case.leak)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-5), new, moved)
        losses.append(float(reconstruct(moved, case.leak).loss))
    result = jax.jit(together.reconstruct)(new, case.leak)
    np.testing.assert_allclose(result.loss, min(losses), rtol=1e-4)
    np.testing.assert_allclose(new.loss, np.min(new.seeds.loss))
    weighted = make(case, num_seeds=3, group=1.0, langevin=0.0)
    other = jax.jit(weighted.step)(KEY, jax.jit(weighted.init)(KEY, case.leak), case.leak)
    assert not np.allclose(other.seeds.candidate.latent, new.seeds.candidate.latent, atol=1e-3)


def test_seeds_and_steps_have_noise_of_their_own(scenario):
    case = scenario("mlp")
    settings = {"gradient": 0.0, "total_variation": 0.0, "l2": 0.0, "batch_norm": 0.0, "group": 0.0, "warmup": 0}
    attack = make(case, num_seeds=2, labels=case.truth.y, learning_rate=0.5, **settings)
    state = at(attack, case.leak, np.zeros((2, *case.shape), np.float32))
    step = jax.jit(attack.step)
    # Where nothing pulls, the update is noise of 0.2 times the rate alone.
    found = [np.asarray(step(key, state, case.leak).seeds.candidate.latent) for key in jax.random.split(KEY, 40)]
    drawn = np.ravel(found) / (0.5 * 0.2)
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-3
    assert len(np.unique(drawn)) > 0.99 * drawn.size


def test_the_answer_is_the_seed_of_the_least_loss_and_never_a_diverged_one(scenario):
    case = scenario("mlp")
    attack = make(case, num_seeds=3, labels=case.truth.y)
    far = np.full(case.shape, 3.0, np.float32)
    near = (np.asarray(case.truth.x) - 0.5) / 0.25
    result = attack.reconstruct(at(attack, case.leak, np.stack([far, near, np.nan * far])), case.leak)
    np.testing.assert_allclose(result.batch.x, case.truth.x, atol=1e-5)
    assert float(result.loss) < 1e-4
    assert int(result.status) == jl.Status.FINISHED


def test_a_match_is_no_trouble(scenario):
    """At the truth all norms of the distance are zero, and their derivatives are too."""
    case = scenario("mlp")
    attack = make(case, num_seeds=2, labels=case.truth.y, **{**PLAIN, "mean": 0.0, "stddev": 1.0})
    state = jax.jit(attack.step)(KEY, at(attack, case.leak, np.stack([case.truth.x] * 2)), case.leak)
    assert bool(jnp.all(jnp.isfinite(state.seeds.candidate.latent)))


def exact(case, leak, x):
    return jl.Leak(
        leak.params,
        leak.update,
        leak.num_examples,
        statistics=jl.normalisations.statistics(case.loss_fn, leak.params, x),
    )


def test_which_statistics_it_compares_with(scenario):
    case = scenario("resnet", shape=(2, 6, 6, 2))
    leak = trained(case)
    proxy = jax.random.uniform(jax.random.key(9), (5, 6, 6, 2))
    granted = exact(case, leak, case.truth.x)
    state = leak.params["batch_stats"]
    expected = {
        "received": [(state[name]["mean"], state[name]["var"]) for name in ("BatchNorm_0", "BatchNorm_1")],
        "exact": statistics(case, leak.params, case.truth.x),
        "proxy": statistics(case, leak.params, proxy),
    }
    for name, pairs in expected.items():
        attack = make(case, statistics=name, proxy=proxy if name == "proxy" else None)
        found = attack.init(KEY, granted).seeds.memory.targets
        for one, other in zip(found, pairs, strict=True):
            np.testing.assert_allclose(one[0][0], other[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one[1][1], other[1], rtol=1e-4, atol=1e-5)


def test_statistics_of_the_batch_are_lanes_as_updates_are(scenario, truth):
    case = scenario("resnet", shape=(2, 6, 6, 2))
    leak = trained(case)
    leaks = [
        exact(case, jl.Leak(leak.params, jax.jit(case.observe)(leak.params, batch), 2), batch.x)
        for batch in (case.truth, truth(5, case.shape))
    ]
    attack = make(case, statistics="exact", num_steps=2, langevin=0.0)
    own = [(one.update, one.statistics) for one in leaks]
    update, granted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    stacked = jl.Leak(leak.params, update, 2, statistics=granted)
    keys = jax.random.split(KEY, 2)
    together = jl.run(attack, stacked, keys)
    for i in range(2):
        alone = jl.run(attack, leaks[i], keys[i])
        np.testing.assert_allclose(together.batch.x[i], alone.batch.x, atol=1e-3)
    other = jl.run(attack, jl.Leak(leak.params, update, 2, statistics=jax.tree.map(lambda s: s[::-1], granted)), keys)
    assert not np.allclose(other.batch.x, together.batch.x, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "settings", "granted", "message"),
    [
        ("resnet", {"statistics": "exact"}, None, "^statistics=exact: leak.statistics is None: expected jaxleak.Leak"),
        (
            "resnet",
            {"statistics": "exact"},
            "one",
            r"^leak.statistics: \[1\]\[0\] is missing: expected shape \(4,\), as",
        ),
        ("mlp", {"statistics": "exact"}, "one", "^statistics=exact: the loss has no normalisation .* batch_norm=0.0"),
        ("mlp", {"statistics": "proxy"}, None, "^statistics=proxy: the loss has no normalisation .* batch_norm=0.0"),
    ],
)
def test_statistics_that_are_not_there_are_refused(scenario, model, settings, granted, message):
    case = scenario(model)
    given = ((jnp.ones(4), jnp.ones(4)),) if granted else None
    leak = jl.Leak(case.params, case.leak.update, 1, statistics=given)
    proxy = case.truth.x if settings["statistics"] == "proxy" else None
    with pytest.raises(ValueError, match=message):
        jl.run(make(case, proxy=proxy, **settings), leak, KEY)
    # Where they do not count, nobody asks for them.
    attack = make(case, proxy=proxy, batch_norm=0.0, **settings)
    jax.eval_shape(attack.init, KEY, leak)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_seeds": 0}, "^num_seeds=0: expected >= 1$"),
        ({"warmup": -1}, "^warmup=-1: expected >= 0$"),
        ({"register_every": 0}, "^register_every=0: expected >= 1$"),
        ({"group": -1.0}, "^group=-1.0: expected >= 0$"),
        ({"batch_norm": -1.0}, "^batch_norm=-1.0: expected >= 0$"),
        ({"langevin": -0.1}, "^langevin=-0.1: expected >= 0$"),
        ({"statistics": "running"}, "^unknown statistics 'running': known are "),
        ({"answer": "mean"}, "^unknown answer 'mean': known are "),
        ({"statistics": "proxy"}, "^proxy: none for statistics=proxy$"),
        ({"proxy": jnp.ones((1, 6, 6, 2))}, "^proxy: given for statistics=received$"),
        ({"statistics": "proxy", "proxy": jnp.ones((1, 6, 5, 2))}, r"^proxy: shape .*: expected \(m, 6, 6, 2\)$"),
    ],
)
def test_wrong_settings_are_refused(scenario, settings, message):
    with pytest.raises(ValueError, match=message):
        make(scenario("mlp"), **settings)


def test_weights_may_be_lanes(scenario):
    """An ablation in one program: weights of zero that are traced count as nothing."""
    case = scenario("resnet")
    table = {"batch_norm": jnp.array([0.0, 0.1, 0.1]), "group": jnp.array([0.0, 0.0, 0.5])}

    def made(weights):
        return make(case, num_steps=3, langevin=0.0, **weights)

    found = jl.run(made, case.leak, KEY[None], settings=table)
    # Numbers of zero leave their terms out of the program.
    alone = jl.run(made(dict.fromkeys(table, 0.0)), case.leak, KEY)
    np.testing.assert_allclose(found.batch.x[0, 0], alone.batch.x, atol=1e-3)
    assert np.unique(np.asarray(found.loss).round(6)).size == 3
