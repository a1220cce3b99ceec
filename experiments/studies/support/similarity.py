"""All metrics of a reconstruction that papers have, and why one is missing."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak import perceptual

Measure = Callable[[jax.Array, jax.Array], jax.Array]


class Measures(NamedTuple):
    """What reconstructions are compared by.

    Attributes:
      of: by name, `measure(truth, x) -> [n]` of images [n, height, width, channels].
      missing: of the others, why they cannot be had.
    """

    of: Mapping[str, Measure]
    missing: Mapping[str, str]


def lpips(backbones: Mapping[str, pathlib.Path | None], linear_dir: pathlib.Path | None, side: int) -> Measures:
    """LPIPS by each network of which there are weights.

    Args:
      backbones: by the network's name, a file of torchvision's weights.
      linear_dir: folder of `lpips_v0.1_vgg_lin.safetensors` and the like.
      side: the smaller one of the images.

    Returns:
      Measures by names such as lpips_vgg.

    Raises:
      ValueError: a file is not what it should be.
    """
    of: dict[str, Measure] = {}
    missing = {}
    for net, backbone in backbones.items():
        least = perceptual.smallest_side(net)
        if backbone is None or linear_dir is None:
            missing[f"lpips_{net}"] = f"no {'backbone weights' if backbone is None else 'weights of linear layers'}"
        elif side < least:
            missing[f"lpips_{net}"] = f"images of {side} pixels a side, and {net} takes {least} or more"
        else:
            weights = perceptual.load_lpips(net, backbone, linear_dir / f"lpips_v0.1_{net}_lin.safetensors")
            of[f"lpips_{net}"] = lambda truth, x, weights=weights: jl.metrics.lpips(weights, truth, x)
    return Measures(of, missing)


def compared(measures: Measures, truth: jax.Array, x: np.ndarray) -> dict[str, Any]:
    """Reconstructions beside the truth.

    Args:
      measures: to compare by.
      truth: images [n, height, width, channels].
      x: several draws of them [draws, n, height, width, channels].

    Returns:
      Of each metric the means over draws [n], with the mean and the median of these; all None where it is missing, and
      `missing` has why.
    """
    found: dict[str, Any] = {}
    for metric, measure in measures.of.items():
        values = np.mean([np.asarray(measure(truth, jnp.asarray(one))) for one in x], axis=0)
        found |= {metric: significant(values), f"{metric}_mean": significant(np.mean(values))}
        found[f"{metric}_median"] = significant(np.median(values))
    for metric in measures.missing:
        found |= {metric: None, f"{metric}_mean": None, f"{metric}_median": None}
    return {**found, "missing": dict(measures.missing)}


def significant(values: Any, digits: int = 4) -> Any:
    """Numbers of a row, nested as they are, to some digits; None for what is not finite, which JSON does not have."""
    if np.ndim(values):
        return [significant(value, digits) for value in values]
    return float(f"{float(values):.{digits}g}") if np.isfinite(values) else None
