"""The theorems of papers/gradient_dropout, by Monte Carlo over real gradients, and where they do not hold as printed.

`jaxleak.experiments.studies.gradient_dropout_theorems` has the formulas; what they are compared with is the defense.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxleak as jl
from jaxleak.defenses.leaf_groups import by_layer
from jaxleak.experiments import data
from jaxleak.experiments.studies import gradient_dropout_theorems as study

DRAWS = 200
KEEPS = (0.96, 0.6, 0.1)
STDDEVS = (5e-3, 0.5)
# Of one image each, of untrained models: many entries carry the first, few the second and third.
CASES = (("lenet", "photos"), ("lenet", "digits"), ("mlp", "digits"))


@functools.cache
def gradient(model, dataset):
    _, (tree,), (flat,) = study.gradients(model, data.load(dataset), 1, 1)
    return tree, flat


@functools.cache
def simulated(model, dataset, keep, stddev):
    found = study.simulate(gradient(model, dataset)[0], keep, stddev, jax.random.key(5), draws=DRAWS)
    return tuple(np.asarray(one, np.float64) for one in found)


def mean_and_error(draws):
    return np.mean(draws), np.std(draws, ddof=1) / np.sqrt(len(draws))


each_gradient = pytest.mark.parametrize(("model", "dataset"), CASES)


@each_gradient
def test_theorem_1_holds(model, dataset):
    """E[l] > l0 for every p < 1 - l0 / stddev^2: the lower end of the confidence interval exceeds l0.

    l is the mean over the entries of the squared differences (eq. 2 with an entry for a component). With a layer for a
    component its norms add up the entries, and the bound holds all the more.
    """
    tree, flat = gradient(model, dataset)
    layers = len(by_layer(tree))
    for keep in KEEPS:
        for stddev in STDDEVS:
            distances, _ = simulated(model, dataset, keep, stddev)
            mean, error = mean_and_error(distances)
            # The largest l0 that the theorem speaks of is just below this.
            threshold = 0.99 * study.distance_bound(keep, stddev)
            assert keep < 1 - threshold / stddev**2
            assert mean - 3 * error > threshold
            assert (mean - 3 * error) * flat.size / layers > threshold * flat.size / layers > threshold


@each_gradient
def test_the_expected_distance_is_not_the_printed_one(model, dataset):
    """Appendix A, "Proof for Theorem 7", the line that begins E_{w,B}[l^i]: its last term is wrong.

    Printed, an entry contributes (1-p)^2/p g^2 + (1-p) stddev^2 + (1-p)^2 g^2. The replaced entry is replaced with
    probability 1-p, and then differs by stddev^2 + g^2 on the average: the last term is (1-p) g^2. So
    E[l] = (1-p) (stddev^2 + mean(g^2) / p), and the printed sum falls short of it by p (1-p) mean(g^2). The Monte Carlo
    mean tells them apart. The bound E[l] >= (1-p) stddev^2 follows from either, so the theorem holds.
    (The term -2 (1-p) stddev B g lacks the factor 1/N of its neighbours; its mean is zero.)
    """
    _, flat = gradient(model, dataset)
    for keep in KEEPS:
        for stddev in STDDEVS:
            mean, error = mean_and_error(simulated(model, dataset, keep, stddev)[0])
            expected, printed = (rule(flat, keep, stddev) for rule in (study.expected_distance, study.printed_distance))
            assert abs(mean - expected) < 5 * error
            assert expected - printed == pytest.approx(keep * (1 - keep) * np.mean(flat**2))
            assert study.distance_bound(keep, stddev) <= printed < expected
    mean, error = mean_and_error(simulated(model, dataset, 0.6, 5e-3)[0])
    assert mean - study.printed_distance(flat, 0.6, 5e-3) > 20 * error


def test_the_step_is_unbiased_and_varies_more_than_eq_4_has_it():
    """E[g~] = g exactly, entry by entry, as eq. (4) says of the drift.

    An entry's variance is (1-p) (g^2 / p + stddev^2). Eq. (4) and Theorems 2 and 3 carry (1-p)^2 stddev^2 instead,
    which is that of the mean over masks with the noise given: even where g = 0 it is too small, by the factor 1-p.
    Their delta is that of a trajectory averaged over masks, not of the one on which a client trains.
    """
    tree, flat = gradient("lenet", "digits")
    keep, stddev, draws = 0.6, 5e-3, 1_500

    def draw(key):
        defense = jl.defenses.gradient_dropout(keep, stddev, key=key)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(defense.update(tree, key)[0])])

    sent = np.asarray(
        jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=50))(jax.random.split(jax.random.key(2), draws)),
        np.float64,
    )
    variance = (1 - keep) * (flat**2 / keep + stddev**2)
    scores = (sent.mean(0) - flat) / np.sqrt(variance / draws)
    assert scipy.stats.kstest(scores, scipy.stats.norm.cdf).pvalue > 1e-3
    assert np.max(np.abs(scores)) < 6
    ratio = sent.var(0) / variance
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.01)
    quiet = np.abs(flat) < 0.1 * stddev
    assert quiet.sum() > 100
    assert np.mean(sent[:, quiet].var(0)) > 2 * (1 - keep) ** 2 * stddev**2


def test_theorem_4_holds_where_many_entries_carry_the_gradient():
    """LeNet on a photograph: cos <= sqrt(p) + 0.05 in every draw, and about its limit, at every p and stddev."""
    _, flat = gradient("lenet", "photos")
    assert study.effective_entries(flat) > 1_000
    for keep in KEEPS:
        for stddev in STDDEVS:
            _, cosines = simulated("lenet", "photos", keep, stddev)
            assert np.max(cosines) < np.sqrt(keep) + 0.05
            assert np.median(cosines) == pytest.approx(study.cosine_limit(flat, keep, stddev), abs=0.02)
    # Without noise to speak of, the limit is sqrt(p) itself: half of all draws exceed it if the margin is zero.
    assert np.mean(simulated("lenet", "photos", 0.6, 5e-3)[1] > np.sqrt(0.6)) > 0.3


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_without_condition_9_theorem_4_does_not_hold(size):
    """g = sqrt(d) e_1 has |g|^2 = d, but no bound on its largest entry: whenever that is kept, the cosine is near one.

    This happens with probability p, in whatever dimension.
    """
    keep, draws = 0.6, 400
    tree = jnp.zeros(size).at[0].set(size**0.5)
    _, cosines = study.simulate(tree, keep, 5e-3, jax.random.key(0), draws=draws)
    above = int(np.sum(np.asarray(cosines) >= np.sqrt(keep) + 0.2))
    assert scipy.stats.binomtest(above, draws, keep).pvalue > 1e-3


@pytest.mark.parametrize(("model", "least"), [("lenet", 0.02), ("lenet5", 0.2)])
def test_real_gradients_of_few_strong_entries_exceed_the_bound(model, least):
    """Thousands of entries, but a few carry the gradient of a digit: sqrt(p) + 0.05 is exceeded again and again.

    d is not the dimension that counts. (sum g^2)^2 / sum g^4 is: without noise the cosine is the root of the share S of
    |g|^2 that is kept, and by Hoeffding's inequality P(S >= p + t) <= exp(-2 t^2 (sum g^2)^2 / sum g^4).
    """
    tree, flat = gradient(model, "digits")
    effective = study.effective_entries(flat)
    assert effective < 100 < 8_000 < flat.size
    keep = 0.5
    _, cosines = study.simulate(tree, keep, 5e-3, jax.random.key(1), draws=DRAWS)
    assert np.mean(np.asarray(cosines) >= np.sqrt(keep) + 0.05) > least
    _, silent = study.simulate(tree, keep, 0.0, jax.random.key(1), draws=DRAWS)
    for margin in (0.02, 0.05, 0.1, 0.2):
        bound = np.exp(-2 * effective * ((np.sqrt(keep) + margin) ** 2 - keep) ** 2)
        above = int(np.sum(np.asarray(silent) >= np.sqrt(keep) + margin))
        assert scipy.stats.binomtest(above, DRAWS, min(1.0, bound), alternative="greater").pvalue > 1e-3


def test_two_inequalities_in_the_proof_of_theorem_4_are_wrong_as_printed():
    """Step 3: "phi(u) = u / sqrt(u/p + (1-p) stddev^2) <= u / sqrt(u/p) = sqrt(p)", and the limit of C_delta.

    u / sqrt(u/p) is sqrt(p u), which exceeds sqrt(p) for u > 1; the norm of g, sqrt(u), is missing below the line. And
    C_delta of eq. (13) tends to beta / sqrt(alpha mu_2 / 2), not to phi*: even at alpha = beta = 1 that is about
    sqrt(2 p). Neither is needed: on the proof's event cos <= (mu_1 + delta) / sqrt(mu_1 (mu_2 - delta)), which tends to
    u / sqrt(u (u/p + (1-p) stddev^2)) <= sqrt(p), for every u.
    """
    keep, stddev = 0.25, 0.1
    entries = np.full(10, 2.0)
    assert study.printed_cosine_limit(entries, keep, stddev) > 1.9 * np.sqrt(keep)
    limit_of_c = 1 / np.sqrt((1 / keep + (1 - keep) * stddev**2) / 2)
    assert limit_of_c > 1.4 * np.sqrt(keep)
    for keep in (0.01, 0.5, 0.99):
        for stddev in (1e-4, 1.0, 100.0):
            for size in np.logspace(-6, 6, 13):
                assert study.cosine_limit(np.full(3, size), keep, stddev) <= np.sqrt(keep) * (1 + 1e-12)
    # That is the limit: many equal entries, far from sqrt(p).
    _, cosines = study.simulate(jnp.full(20_000, 2.0), 0.25, 3.0, jax.random.key(0), draws=20)
    np.testing.assert_allclose(cosines, study.cosine_limit(entries, 0.25, 3.0), atol=0.03)
    assert study.cosine_limit(entries, 0.25, 3.0) < 0.45
