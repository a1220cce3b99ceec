"""Clients and their examples, and what is refused."""

import numpy as np
import pytest

import jaxleak as jl


def test_clients_have_the_examples_that_they_were_given(examples):
    x, y = examples
    parts = [np.array([3, 5]), np.array([7]), np.array([0, 1, 2])]
    found = jl.fl.population(x, y, parts)
    assert found.sizes == (2, 1, 3)
    assert found.num_clients == 3
    assert found.ids.shape == (3, 3)
    for client, part in enumerate(parts):
        np.testing.assert_array_equal(found.ids[client, : len(part)], part)
        assert set(np.asarray(found.ids[client]).tolist()) == set(part.tolist())
        assert int(found.num_labels[client]) == len(set(y[part].tolist()))
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": []}, "^parts: no clients"),
        ({"parts": [[0, 1], []]}, "^parts: client 1 has ids of shape \\(0,\\): expected at least one example$"),
        ({"parts": [[0], [24]]}, "^parts: client 1 has ids outside of 0..23"),
        ({"parts": [[0, -1]]}, "^parts: client 0 has ids outside of 0..23"),
        ({"parts": [[0.5]]}, "^parts: client 0 has ids outside of 0..23, or none that are integers$"),
        ({"parts": [[2, 2]]}, "^parts: client 0 has an example twice$"),
        ({"y": np.zeros(23, int)}, "^x has shape \\(24, 3, 3, 1\\), y \\(23,\\): expected"),
        ({"y": np.zeros(24)}, "^y has dtype float64"),
        ({"y": np.full(24, -1)}, "^y has dtype int64 and values from -1"),
        ({"x": np.full((24, 3, 3, 1), np.nan)}, "^x: example 0 is not finite$"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(examples, change, message):
    given = {"x": examples[0], "y": examples[1], "parts": [[0]], **change}
    with pytest.raises(ValueError, match=message):
        jl.fl.population(**given)
