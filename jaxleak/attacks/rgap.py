"""R-GAP (Zhu and Blaschko 2021): the image by linear equations, one layer after another."""

from collections.abc import Callable
from typing import Any

import jax

from jaxleak import equations, validate
from jaxleak.attacks.objective import Labels
from jaxleak.attacks.recursion import Place, recursive
from jaxleak.base import Attack
from jaxleak.chains import Chain
from jaxleak.labels import row_norm


def rgap(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 5_000,
    labels: Labels = row_norm,
    tolerance: Any = 1e-12,
    stall: Any = 1e-2,
) -> Attack:
    """R-GAP: the recursive gradient attack on privacy, for one example and a network that is a chain of layers.

    From the last layer to the first, the input of a layer solves two sets of linear equations: that the layer makes of
    it what the recursion already knows (weight constraints), and that it has the received gradient (gradient
    constraints). What the layer made is the input of the next one through the inverse of the activation; how the loss
    depends on it comes from the layers behind by the chain rule. No image is guessed, and no seed matters.

    Layers are found by tracing the loss: convolutions with any padding and strides, dense layers, biases, batch norm in
    eval mode, pooling by means, and reshapes. All is computed in float64, and no matrix is ever made: equations are
    applied as the convolutions they are, and solved by conjugate gradients. Whether the equations determine an input is
    said beforehand by `rank_analysis`; where they do not, the input is the one of least norm.

    Args:
      observe: the observation to invert, of one gradient.
      shape: of the image, (1, height, width, channels).
      num_classes: of the labels.
      num_steps: of conjugate gradients for one layer, at most. The whole recursion is done before the first step of a
        run, which then has converged.
      labels: of the example, by the longest row of the classifier's gradient.
      tolerance: conjugate gradients stop where the residual of the normal equations has fallen to this share.
      stall: an image whose matching loss exceeds this multiple of the received gradient's squared norm is called
        stalled: the equations of some layer did not determine its input, or the gradient is not one of this network.

    Returns:
      An Attack.

    Raises:
      ValueError: more than one example, several rounds, a tolerance or `stall` that is not above zero; and when it
        starts, a network that is no chain or has an activation that cannot be inverted; the message says where.

    Source: Zhu and Blaschko 2021, "R-GAP: Recursive Gradient Attack on Privacy". Its text was not at hand; the
      equations are those of its program, so that they have formulas in the comments here, and no numbers.

    Differs from the paper in: its program has one logit and a logistic loss, and finds the logit by 30,000 steps of
      gradient descent; here there are several classes, and without a bias the norm of the last features is found by a
      search in one dimension, over what the softmax says for all classes. Each set of equations is scaled to norm 1.
      Padding is part of the layer, in the place of unknown pixels with equations of their own. Dense layers use the
      weight constraints too.
    """
    validate.at_least("tolerance", tolerance, 0, exclusive=True)
    validate.at_least("stall", stall, 0, exclusive=True)

    def check(chain: Chain) -> None:
        for i, stage in enumerate(chain.stages[:-1]):
            if chain.rises[i] != "strict":
                raise ValueError(
                    f"rgap: what follows {stage.name} cannot be inverted: expected a strictly increasing activation "
                    "and no pooling by maxima; copa takes both"
                )

    def solve(place: Place) -> jax.Array:
        return equations.least_squares(place.equations(), num_steps=num_steps, tolerance=tolerance)

    return recursive(
        observe,
        name="rgap",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        solve=solve,
        check=check,
        stall=stall,
    )
