"""DLG and iDLG on the LeNet they were shown on."""

import jax
import jax.numpy as jnp

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
