"""Convolutions as matrix products against XLA's native ones: values, first and second derivatives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxleak as jl
from jaxleak import convolution, models

# A relative bound by type: a few hundred products of order one, in another order of summation.
BOUNDS = {"float32": 2e-5, "float64": 1e-12}


def native(x, kernel, **settings):
    return lax.conv_general_dilated(x, kernel, **settings)


def arrays(x_shape, kernel_shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    x, kernel = (generator.normal(size=shape) for shape in (x_shape, kernel_shape))
    return jnp.asarray(x, dtype), jnp.asarray(kernel / np.sqrt(kernel[..., 0].size), dtype)


def primitives(fn, *args):
    """Names of all primitives in the program of a function, however deep."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return list(walk(jax.make_jaxpr(fn)(*args).jaxpr))


def check_alike(fn, arguments, dtype, *, argnums=(0, 1), twice=True):
    """Value, gradient and (`twice`) the gradient of a function of the gradient agree, in shapes and types too."""

    def scalar(function):
        return lambda *args: jnp.mean(function(*args) ** 3)

    def second(function):
        def norm(*args):
            return sum(jnp.sum(g**2) for g in jax.grad(scalar(function), argnums)(*args))

        return jax.grad(norm, argnums)

    @jax.jit
    def everything(*args):
        functions = (fn, convolution.as_products(fn))
        derivatives = [jax.grad(scalar(f), argnums) for f in functions]
        values = [(f(*args), derivative(*args)) for f, derivative in zip(functions, derivatives, strict=True)]
        return [(*value, second(f)(*args)) if twice else value for f, value in zip(functions, values, strict=True)]

    expected, found = everything(*arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = max(float(jnp.max(jnp.abs(b), initial=0.0)), 1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=BOUNDS[dtype] * size)


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
PLAIN = {
    "3x3 same": ((2, 7, 6, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "SAME"}, NHWC),
    "3x3 stride 2 same": ((1, 8, 7, 2), (3, 3, 2, 5), {"window_strides": (2, 2), "padding": "SAME"}, NHWC),
    "strides differ": ((2, 9, 8, 2), (3, 2, 2, 3), {"window_strides": (3, 2), "padding": "VALID"}, NHWC),
    "1x1": ((2, 5, 5, 4), (1, 1, 4, 3), {"window_strides": (1, 1), "padding": "VALID"}, NHWC),
    "1x1 stride 2": ((2, 5, 6, 4), (1, 1, 4, 3), {"window_strides": (2, 2), "padding": "SAME"}, NHWC),
    "explicit": ((1, 6, 6, 2), (5, 5, 2, 3), {"window_strides": (2, 2), "padding": ((2, 1), (0, 3))}, NHWC),
    "5x5": ((2, 9, 8, 2), (5, 4, 2, 3), {"window_strides": (2, 1), "padding": "SAME"}, NHWC),
    "5x5, torch": ((2, 2, 9, 8), (3, 2, 5, 5), {"window_strides": (1, 2), "padding": ((2, 2), (1, 2))}, NCHW),
    "whole image": ((3, 4, 5, 2), (4, 5, 2, 6), {"window_strides": (1, 1), "padding": "VALID"}, NHWC),
    "torch": ((2, 3, 7, 6), (4, 3, 3, 3), {"window_strides": (2, 1), "padding": ((1, 1), (1, 1))}, NCHW),
    "mixed": ((2, 3, 7, 6), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "SAME"}, ("NCHW", "HWIO", "NHWC")),
    "odd": ((7, 2, 6, 3), (3, 4, 2, 3), {"window_strides": (1, 2), "padding": "SAME"}, ("HNWC", "IOHW", "CWNH")),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in PLAIN), ("3x3 same", "float32"), ("torch", "float32")]
)
def test_plain_convolutions_are_replaced_and_agree(name, dtype):
    x_shape, kernel_shape, settings, numbers = PLAIN[name]
    with jax.enable_x64(dtype == "float64"):
        fn = functools.partial(native, dimension_numbers=numbers, **settings)
        arguments = arrays(x_shape, kernel_shape, dtype)
        assert "conv_general_dilated" not in primitives(convolution.as_products(fn), *arguments)
        check_alike(fn, arguments, dtype)


UNUSUAL = {
    "groups": ((2, 6, 5, 4), (3, 3, 2, 6), {"feature_group_count": 2, "padding": "SAME"}, NHWC),
    "groups, strided": (
        (2, 7, 6, 6),
        (3, 2, 2, 3),
        {"feature_group_count": 3, "padding": "SAME", "window_strides": (2, 1)},
        NHWC,
    ),
    "depthwise": ((2, 6, 6, 4), (3, 3, 1, 4), {"feature_group_count": 4, "padding": "SAME"}, NHWC),
    "depthwise, multiplied": (
        (2, 6, 7, 3),
        (3, 2, 1, 6),
        {"feature_group_count": 3, "padding": "SAME", "window_strides": (2, 2)},
        NHWC,
    ),
    "depthwise, torch": ((2, 4, 6, 5), (4, 1, 3, 3), {"feature_group_count": 4, "padding": ((1, 1), (1, 1))}, NCHW),
    "dilated": ((2, 8, 8, 2), (3, 3, 2, 3), {"rhs_dilation": (2, 3), "padding": "VALID"}, NHWC),
    "dilated, strided": (
        (1, 9, 8, 2),
        (3, 3, 2, 3),
        {"rhs_dilation": (2, 2), "padding": "SAME", "window_strides": (2, 1)},
        NHWC,
    ),
    "transposed": ((2, 4, 4, 2), (3, 3, 2, 3), {"lhs_dilation": (2, 2), "padding": ((1, 1), (2, 1))}, NHWC),
    "negative padding": ((2, 8, 8, 2), (3, 3, 2, 3), {"padding": ((-1, 0), (1, -1))}, NHWC),
    "1-D": ((2, 8, 2), (3, 2, 3), {"padding": "SAME"}, ("NWC", "WIO", "NWC")),
    "1-D, depthwise": ((2, 8, 3), (3, 1, 3), {"padding": "SAME", "feature_group_count": 3}, ("NWC", "WIO", "NWC")),
    "3-D": ((1, 4, 4, 4, 2), (2, 2, 2, 2, 3), {"padding": "VALID"}, ("NDHWC", "DHWIO", "NDHWC")),
    "3-D, large window": ((1, 5, 6, 5, 2), (3, 2, 3, 2, 3), {"padding": "SAME"}, ("NDHWC", "DHWIO", "NDHWC")),
    "5x5, dilated": ((2, 11, 10, 2), (5, 3, 2, 3), {"rhs_dilation": (2, 3), "padding": "SAME"}, NHWC),
    "3-D, torch": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"padding": "SAME"}, ("NCDHW", "OIDHW", "NCDHW")),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in UNUSUAL), ("groups", "float32"), ("depthwise", "float32")]
)
def test_unusual_convolutions_are_replaced_and_agree(name, dtype):
    x_shape, kernel_shape, settings, numbers = UNUSUAL[name]
    settings = {"window_strides": (1,) * (len(x_shape) - 2), **settings}
    with jax.enable_x64(dtype == "float64"):
        fn = functools.partial(native, dimension_numbers=numbers, **settings)
        arguments = arrays(x_shape, kernel_shape, dtype)
        assert "conv_general_dilated" not in primitives(convolution.as_products(fn), *arguments)
        # Derivatives of native grouped convolutions compile slowly; one alone tells the transposition from the value.
        check_alike(fn, arguments, dtype, twice=name in ("groups", "depthwise", "dilated", "transposed"))


# Few features and many positions, so that neighbouring outputs are computed as one.
NEIGHBOURS = {
    "5x5": ((2, 12, 10, 1), (5, 5, 1, 1), {"padding": "VALID"}, NHWC),
    "5x5, an odd number of outputs": ((2, 9, 11, 2), (5, 5, 2, 3), {"padding": "SAME"}, NHWC),
    "7x5, torch": ((2, 2, 12, 11), (2, 2, 7, 5), {"padding": ((3, 3), (2, 1))}, NCHW),
    "negative padding": ((3, 11, 12, 2), (5, 5, 2, 1), {"padding": ((-1, 0), (2, -1))}, NHWC),
    "1-D": ((3, 40, 2), (11, 2, 2), {"padding": "SAME"}, ("NWC", "WIO", "NWC")),
    "3-D": ((2, 7, 7, 7, 1), (5, 5, 5, 1, 2), {"padding": ((2, 1),) * 3}, ("NDHWC", "DHWIO", "NDHWC")),
}


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float64") for name in NEIGHBOURS), ("5x5", "float32")])
def test_neighbouring_outputs_at_once_agree(name, dtype, monkeypatch):
    x_shape, kernel_shape, settings, numbers = NEIGHBOURS[name]
    taken = []
    original = convolution._neighbours_at_once
    monkeypatch.setattr(convolution, "_neighbours_at_once", lambda *args: taken.append(1) or original(*args))
    # Its own bound, for all ranks: three axes multiply.
    monkeypatch.setattr(convolution, "_MOST_ARITHMETIC", 2.0)
    settings = {"window_strides": (1,) * (len(x_shape) - 2), **settings}
    with jax.enable_x64(dtype == "float64"):
        fn = functools.partial(native, dimension_numbers=numbers, **settings)
        check_alike(fn, arrays(x_shape, kernel_shape, dtype), dtype)
    assert taken


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "settings", "expected"),
    [
        ((32, 28, 28, 1), (5, 5, 1, 6), {}, True),
        ((1, 12, 12, 12), (5, 5, 12, 12), {}, False),
        ((32, 28, 28, 1), (5, 5, 1, 32), {}, False),
        ((32, 28, 28, 1), (3, 3, 1, 6), {}, False),
        ((32, 28, 28, 1), (4, 4, 1, 6), {}, False),
        ((32, 28, 28, 1), (5, 5, 1, 6), {"window_strides": (2, 2)}, False),
        ((32, 28, 28, 1), (5, 5, 1, 6), {"rhs_dilation": (2, 2)}, False),
    ],
    ids=["pays", "few positions", "many features", "small", "even", "strided", "dilated"],
)
def test_neighbours_are_taken_together_only_where_it_pays(x_shape, kernel_shape, settings, expected):
    """By the products of the program: the kernel's features are four times as many, or as they were."""
    fn = convolution.as_products(
        functools.partial(native, dimension_numbers=NHWC, **{"window_strides": (1, 1), "padding": "SAME", **settings})
    )
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    (product,) = [e for e in jax.make_jaxpr(fn)(*shapes).jaxpr.eqns if e.primitive.name == "dot_general"]
    assert product.outvars[0].aval.shape[-1] == kernel_shape[-1] * (4 if expected else 1)


def test_groups_in_the_batch_stay_native():
    fn = functools.partial(native, window_strides=(1, 1), batch_group_count=2, padding="SAME", dimension_numbers=NHWC)
    arguments = arrays((4, 6, 6, 2), (3, 3, 2, 4), "float32")
    assert primitives(convolution.as_products(fn), *arguments).count("conv_general_dilated") == 1
    np.testing.assert_array_equal(convolution.as_products(fn)(*arguments), fn(*arguments))


def same(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def in_scan(x, kernel):
    kernels = jnp.stack([kernel, 0.5 * kernel, -kernel])

    def body(carry, scanned):
        index, each = scanned
        carry = jnp.tanh(same(carry, each)) + index
        return carry, same(carry, kernel)

    carry, stacked = lax.scan(body, x, (0.1 * jnp.arange(3.0), kernels), reverse=True)
    return carry + stacked[0] - stacked[2]


NESTED = {
    "jit": jax.jit(lambda x, kernel: jnp.tanh(same(x, kernel))),
    "remat": jax.checkpoint(lambda x, kernel: jnp.tanh(same(jnp.tanh(same(x, kernel)), kernel))),
    "remat with a policy": jax.checkpoint(
        lambda x, kernel: jnp.tanh(same(x, kernel)), policy=jax.checkpoint_policies.dots_saveable
    ),
    "scan": in_scan,
    "cond": lambda x, kernel: lax.cond(
        jnp.sum(x) > 0, lambda x, k: -same(x, k), lambda x, k: jnp.tanh(same(x, k)), x, kernel
    ),
    "switch": lambda x, kernel: lax.switch(
        1, [same, lambda x, k: jnp.tanh(same(x, k)), lambda x, k: -same(x, k)], x, kernel
    ),
    "jit in remat in scan": lambda x, kernel: lax.scan(
        lambda c, _: (jax.checkpoint(jax.jit(lambda c: jnp.tanh(same(c, kernel))))(c), None), x, length=2
    )[0],
}


@pytest.mark.parametrize("name", NESTED)
def test_convolutions_inside_other_functions_are_replaced_and_agree(x64, name):
    fn, arguments = NESTED[name], arrays((2, 5, 5, 3), (3, 3, 3, 3), "float64")
    assert "conv_general_dilated" in primitives(fn, *arguments)
    assert "conv_general_dilated" not in primitives(convolution.as_products(fn), *arguments)
    check_alike(fn, arguments, "float64")


def test_remat_stays_remat_and_scan_stays_scan():
    arguments = arrays((2, 5, 5, 3), (3, 3, 3, 3), "float32")
    assert any(
        "remat" in p or p == "checkpoint" for p in primitives(convolution.as_products(NESTED["remat"]), *arguments)
    )
    assert "scan" in primitives(convolution.as_products(NESTED["scan"]), *arguments)


def test_what_it_does_not_enter_still_works():
    """A while loop and a function with a derivative rule of its own, each with a convolution inside."""

    @jax.custom_jvp
    def ruled(x, kernel):
        return same(x, kernel)

    ruled.defjvp(lambda primals, tangents: (ruled(*primals), 2 * same(tangents[0], primals[1])))

    def fn(x, kernel):
        z = lax.fori_loop(0, 2, lambda _, c: jnp.tanh(same(c, kernel)), lax.stop_gradient(x))
        return same(x, kernel) + ruled(x, kernel) + lax.stop_gradient(z)

    check_alike(fn, arrays((2, 5, 5, 3), (3, 3, 3, 3), "float32"), "float32", argnums=(0,))


def test_trees_constants_and_outputs_that_are_inputs():
    constant = arrays((2, 5, 5, 3), (3, 3, 3, 3), "float32", seed=1)[1]

    def fn(tree, scale):
        y = same(tree["x"], constant)
        return {"y": scale * y, "same": tree["x"], "number": 3.0, "twice": (y, y)}, None

    x = arrays((2, 5, 5, 3), (3, 3, 3, 3), "float32")[0]
    expected, found = fn({"x": x}, 2), convolution.as_products(fn)({"x": x}, 2)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_function_without_convolutions_is_called_as_it_is():
    calls = []

    def fn(x):
        calls.append(isinstance(x, jax.core.Tracer))
        return x + 1

    assert convolution.as_products(fn)(jnp.ones(())) == 2
    assert calls == [True, False]  # traced once to look for convolutions, then run


def test_preferred_element_type_is_kept():
    def fn(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, preferred_element_type=jnp.float32
        )

    arguments = arrays((1, 4, 4, 2), (3, 3, 2, 3), "bfloat16")
    expected, found = fn(*arguments), convolution.as_products(fn)(*arguments)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_under_vmap_as_alone(axes):
    x, kernel = arrays((3, 2, 5, 5, 3), (3, 3, 3, 3, 4), "float32")
    arguments = (x if axes[0] == 0 else x[0], kernel if axes[1] == 0 else kernel[0])
    fn = jax.vmap(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(same(x, kernel))), (0, 1)), in_axes=axes)
    fast = jax.vmap(
        jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolution.as_products(same)(x, kernel))), (0, 1)), in_axes=axes
    )
    chex.assert_trees_all_close(jax.jit(fast)(*arguments), jax.jit(fn)(*arguments), rtol=1e-4, atol=2e-5)


def test_no_native_convolution_is_left_in_a_lenet():
    model = models.lenet(num_classes=4)
    batch = jl.Batch(jnp.ones((1, 12, 12, 3)), jnp.array([1]))
    params = jax.jit(model.init)(jax.random.key(0), batch.x)
    loss_fn = jl.cross_entropy(model.apply)
    assert primitives(loss_fn, params, batch).count("conv_general_dilated") == 3

    def of_matching(observe):
        return primitives(
            jax.grad(lambda x: sum(map(jnp.sum, jax.tree.leaves(observe(params, batch._replace(x=x)))))), batch.x
        )

    fast = jl.observe.gradient(convolution.as_products(loss_fn), fast_convolutions=False)
    assert "conv_general_dilated" not in of_matching(fast)
    assert "conv_general_dilated" in of_matching(jl.observe.gradient(loss_fn, fast_convolutions=False))
    on_cpu = jax.default_backend() == "cpu"
    assert ("conv_general_dilated" in of_matching(jl.observe.gradient(loss_fn))) == (not on_cpu)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_observe_with_and_without_fast_convolutions_agrees(scenario, name):
    case = scenario(name)
    plain = jl.observe.gradient(case.loss_fn, fast_convolutions=False)
    chex.assert_trees_all_close(jax.jit(plain)(case.params, case.truth), case.leak.update, rtol=1e-3, atol=1e-5)
