"""Blocks written out and scanned are the same network, and only one of the two programs grows with depth."""

import chex
import jax

import jaxleak as jl
from jaxleak.benchmarks import depth


def equations(jaxpr):
    """How many there are, however deep."""
    inner = [
        getattr(value, "jaxpr", value)
        for equation in jaxpr.eqns
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns"))
    ]
    return len(jaxpr.eqns) + sum(equations(program) for program in inner if hasattr(program, "eqns"))


def test_both_ways_leak_the_same(truth):
    batch = truth(0, (1, 8, 8, 3))
    written_out, scanned = (depth.subject(3, way, batch) for way in depth.WAYS)
    chex.assert_trees_all_close(written_out.leak.update, scanned.leak.update, rtol=1e-4, atol=1e-6)


def test_a_scanned_step_does_not_grow_with_depth(truth):
    """The matching loss and its derivative, convolutions taken apart."""
    batch = truth(0, (1, 8, 8, 3))

    def size(way, count):
        subject = depth.subject(count, way, batch)

        def loss(x):
            update = subject.observe.public(subject.leak.params, jl.Batch(x, batch.y))
            return jl.distances.cosine(update, subject.leak.update)

        return equations(jax.make_jaxpr(jax.grad(loss))(batch.x).jaxpr)

    assert size("scanned", 6) == size("scanned", 2)
    assert size("written_out", 6) > 1.5 * size("written_out", 2)
