"""Both sides of the benchmark compute the same: value, gradient and steps, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.benchmarks import subjects

torch = pytest.importorskip("torch")
# Imports torch.
from jaxleak.benchmarks import reference, reference_attacks  # noqa: E402

SHAPE = (2, 8, 8, 3)


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, -3).copy())


def to_jax(x):
    return np.moveaxis(x.detach().numpy(), -3, -1)


def subject_in_float64(name, truth):
    """All parameters and statistics moved away from where they start, so that none is zero or one by chance."""
    apply, params = subjects.NAMES[name](truth.x)
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    leaves = [np.asarray(leaf, np.float64) + 0.1 * random.uniform(0.5, 1, leaf.shape) for leaf in leaves]
    params = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
    # Native convolutions compile faster.
    observe = jl.observe.gradient(jl.cross_entropy(apply), fast_convolutions=False)
    return subjects.Subject(name, apply, observe, jl.Leak(params, observe(params, truth), len(truth.x)), truth)


@pytest.mark.parametrize("name", subjects.NAMES)
def test_value_and_gradient_agree(name, truth, x64):
    subject = subject_in_float64(name, truth(0, SHAPE))
    latent = np.random.default_rng(1).normal(size=SHAPE)

    @jax.jit
    def ours(latent):
        def objective(latent):
            batch = jl.Batch(subjects.MEAN + subjects.STDDEV * latent, subject.truth.y)
            distance = jl.distances.cosine(subject.observe.public(subject.leak.params, batch), subject.leak.update)
            return distance + subjects.TOTAL_VARIATION * jl.priors.total_variation(latent)

        return jax.value_and_grad(objective)(latent)

    value, gradient = ours(latent)
    problem, channels_last = reference.Problem(subject), reference.Problem(subject).channels_last()
    theirs = to_torch(latent)
    found = {
        "autograd": problem.by_autograd(theirs),
        "channels last": channels_last.by_autograd(theirs, channels_last=True),
        "transform": problem.by_transform(theirs),
        "vmap": [part[1] for part in torch.func.vmap(problem.by_transform)(torch.stack([0 * theirs, theirs]))],
    }
    for form, (of_images, of_value) in found.items():
        np.testing.assert_allclose(float(of_value), value, rtol=1e-4, err_msg=form)
        error = np.linalg.norm(to_jax(of_images) - gradient) / np.linalg.norm(gradient)
        assert error < 1e-4, form


def test_steps_agree(truth, x64):
    subject = subject_in_float64("lenet", truth(0, SHAPE))
    attack = subject.attack()
    state = attack.init(jax.random.key(0), subject.leak)
    problem = reference.Problem(subject)
    variant = reference.Variant("autograd", 1, reference.one_by_one(problem.by_autograd))
    lanes = reference.Lanes(variant, to_torch(state.candidate.latent)[None])
    step = jax.jit(attack.step)
    for i in range(5):
        state = step(jax.random.key(i), state, subject.leak)
        lanes.step()
    np.testing.assert_allclose(to_jax(lanes.latents[0]), state.candidate.latent, rtol=1e-4, atol=1e-8)


def test_the_distance_of_dlg_agrees(truth, x64):
    subject = subject_in_float64("lenet", truth(0, SHAPE))
    batch = truth(1, SHAPE)
    update = subject.observe.public(subject.leak.params, jl.Batch(batch.x, subject.truth.y))
    value = reference_attacks.DlgProblem(subject).by_autograd(to_torch(batch.x))[1]
    np.testing.assert_allclose(float(value), jl.distances.squared_l2(update, subject.leak.update), rtol=1e-6)


@pytest.mark.parametrize("name", reference_attacks.NAMES)
def test_whole_attacks_come_nearer(name, truth):
    batch = truth(0, (1, 8, 8, 3))
    subject = subjects.create("lenet", batch)
    reference.seed(0)
    lane = reference_attacks.NAMES[name](subject, "cpu", 1, 100)
    before = float(jl.metrics.psnr(batch.x, lane.images())[0])
    for _ in range(20):
        lane.step()
    assert lane.images().shape == (1, 8, 8, 3)
    assert float(jl.metrics.psnr(batch.x, lane.images())[0]) > before + 3


def test_a_lane_of_idlg_that_diverges_starts_again(truth):
    lane = reference_attacks.NAMES["idlg"](subjects.create("lenet", truth(0, (1, 8, 8, 3))), "cpu", 1, 100)
    lane.step()
    with torch.no_grad():
        lane._latent.fill_(torch.nan)
    lane.step()
    assert np.isfinite(lane.images()).all()
