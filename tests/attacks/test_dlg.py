"""DLG and iDLG on the LeNet they were shown on."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxleak as jl
from jaxleak import models


def test_a_short_run_on_lenet_rebuilds_the_image_and_its_label(truth):
    """Three seeds of one image, 12 of the papers' 300 iterations: the best by matching loss is above the floor."""
    model = models.lenet(num_classes=10)
    batch = truth(1, (1, 12, 12, 1))
    params = jax.jit(model.init)(jax.random.key(2), batch.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    leak = jl.Leak(params, jax.jit(observe)(params, batch))
    attack = jl.attacks.dlg(observe, shape=batch.x.shape, num_classes=10, num_steps=12)
    best = jl.best_of(jl.run(attack, leak, jax.random.split(jax.random.key(0), 3)))
    assert float(jl.metrics.psnr(batch.x, best.batch.x)[0]) > 30
    assert jnp.argmax(best.batch.y, axis=-1).tolist() == batch.y.tolist()
    assert float(best.loss) < 1e-4


@pytest.mark.parametrize("factor", [0.9, 0.3, 0.05])
def test_a_soft_label_takes_up_what_clipping_divides_by(truth, factor):
    """dCE/dlogits = p - y is linear in y, so the image with the label p - c (p - y) has c times the gradient."""
    model = models.lenet(num_classes=10)
    batch = truth(1, (1, 12, 12, 1))
    params = jax.jit(model.init)(jax.random.key(2), batch.x)
    observe = jax.jit(jl.observe.gradient(jl.cross_entropy(model.apply)))
    p = jax.nn.softmax(model.apply(params, batch.x))
    soft = p - factor * (p - jax.nn.one_hot(batch.y, 10))
    assert float(soft.min()) >= 0
    gradient, other = observe(params, batch), observe(params, jl.Batch(batch.x, soft))
    clipped = jl.defenses.clip(factor * float(optax.tree.norm(gradient)))
    received, _ = clipped.update(gradient, clipped.init(gradient))
    chex.assert_trees_all_close(other, received, rtol=1e-3, atol=1e-5)
