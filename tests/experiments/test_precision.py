"""The emulation of lower precisions: what it rounds, and what it leaves."""

import jax
import numpy as np

import jaxleak as jl
from jaxleak.experiments.studies import precision


def losses(case, bits):
    attack = jl.attacks.inverting_gradients(
        case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=2, total_variation=0.0
    )
    changed = attack if bits is None else precision.emulated(attack, bits)
    return np.asarray(jl.run(changed, case.leak, jax.random.split(jax.random.key(0), 2)).trace.loss)


def test_float32_rounds_nothing(scenario):
    np.testing.assert_array_equal(losses(scenario("cnn"), "float32"), losses(scenario("cnn"), None))


def test_lower_precisions_change_the_loss_the_lower_the_more(scenario):
    """A cosine near zero changes by the square of what its factors do, and signs of errors cancel in it."""
    exact, ten_bits, seven_bits = (losses(scenario("cnn"), name)[:, 0] for name in precision.BITS)
    small, large = (np.max(np.abs(rounded - exact)) for rounded in (ten_bits, seven_bits))
    assert 1e-6 < small < 1e-4
    assert 4 * small < large < 1e-2


def test_what_the_optimizer_multiplies_is_left(scenario):
    """Products of L-BFGS leave their precision open."""
    case = scenario("mlp")
    attack = jl.attacks.idlg(case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=1)
    state = jax.eval_shape(attack.init, jax.random.key(0), case.leak)

    def program(attack):
        return str(jax.make_jaxpr(attack.step)(jax.random.key(0), state, case.leak))

    products, rounded = program(attack).count("dot_general["), program(precision.emulated(attack, "bfloat16"))
    assert 0 < rounded.count("reduce_precision[") < 2 * products
