"""The same step in PyTorch.

The gradient of the images is a double backward: of the loss in the parameters, then of the objective in the images.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch  # pyrefly: ignore  # an optional extra
import torch.nn.functional as F  # pyrefly: ignore  # noqa: N812

from jaxleak import variables
from jaxleak.benchmarks import measure, subjects, twins
from jaxleak.benchmarks.subjects import Subject

Tree = Any


class Problem:
    """What `subjects.Subject.attack` minimises, for latent images [n, channels, height, width].

    Attributes:
      mean: the images are `mean + stddev * latent`.
      stddev: see above.
      total_variation: its weight.
      target: the received gradients, in one vector.
      latent_shape: the shape of the latent images.
      device: where it is computed.
    """

    mean, stddev, total_variation = subjects.MEAN, subjects.STDDEV, subjects.TOTAL_VARIATION

    def __init__(self, subject: Subject, device: str = "cpu"):
        self._forward = twins.NAMES[subject.name]
        trainable, state = variables.split(subject.leak.params)
        self._params, self._state = twins.from_jax(trainable, device), twins.from_jax(state, device)
        received = twins.leaves(twins.from_jax(subject.leak.update, device))
        self.target = torch.cat([leaf.reshape(-1) for leaf in received])
        self._target_norm = self.target.norm()
        self._labels = torch.tensor(np.asarray(subject.truth.y), device=device).long()
        count, height, width, channels = subject.truth.x.shape
        self.latent_shape, self.device = (count, channels, height, width), device

    def channels_last(self) -> "Problem":
        """Sets the kernels of convolutions in the layout that has the channels last; returns itself."""
        for leaf in twins.leaves(self._params):
            if leaf.ndim == 4:
                leaf.data = leaf.data.contiguous(memory_format=torch.channels_last)
        return self

    def loss(self, params: Tree, x: torch.Tensor) -> torch.Tensor:
        """The client's loss."""
        return F.cross_entropy(self._forward(params | self._state, x), self._labels)

    def objective(self, latent: torch.Tensor, gradients: Iterator[torch.Tensor]) -> torch.Tensor:
        """Cosine distance of the gradients to those received, plus total variation."""
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        cosine = torch.dot(flat, self.target) / (flat.norm() * self._target_norm)
        horizontal, vertical = latent[..., 1:] - latent[..., :-1], latent[..., 1:, :] - latent[..., :-1, :]
        return 1 - cosine + self.total_variation * (horizontal.abs().mean() + vertical.abs().mean())

    def by_autograd(self, latent: torch.Tensor, *, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the objective, and its value, as papers' code computes them."""
        latent = latent.detach().requires_grad_()
        x = self.mean + self.stddev * latent
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        parameters = list(twins.leaves(self._params))
        for leaf in parameters:
            leaf.requires_grad_()
        gradients = torch.autograd.grad(self.loss(self._params, x), parameters, create_graph=True)
        value = self.objective(latent, iter(gradients))
        return torch.autograd.grad(value, latent)[0], value.detach()

    @torch.no_grad()  # says nothing of the derivatives inside; the results shall not be differentiated further
    def by_transform(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by torch.func, which torch.compile and torch.func.vmap take."""

        def value(latent: torch.Tensor) -> torch.Tensor:
            gradients = torch.func.grad(self.loss)(self._params, self.mean + self.stddev * latent)
            return self.objective(latent, twins.leaves(gradients))

        return torch.func.grad_and_value(value)(latent)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One form of the step.

    Attributes:
      name: what it is.
      threads: of torch on a CPU.
      gradient: from latents [lanes, n, channels, height, width] to their gradients.
    """

    name: str
    threads: int
    gradient: Callable[[torch.Tensor], torch.Tensor]


def one_by_one(function: Callable[[torch.Tensor], tuple]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The lanes in sequence, by a function of one."""
    return lambda latents: torch.stack([function(latent)[0] for latent in latents])


class Lanes:
    """Lanes of the attack: Adam on the sign of the gradient, within the box.

    Attributes:
      latents: the candidates [lanes, n, channels, height, width].
      adam: their optimizer.
    """

    def __init__(self, variant: Variant, latents: torch.Tensor):
        self.latents = latents.clone().requires_grad_()
        self._variant = variant
        self.adam = torch.optim.Adam([self.latents], lr=subjects.LEARNING_RATE, fused=True)

    def step(self) -> None:
        """One step of every lane."""
        self.latents.grad = self._variant.gradient(self.latents.detach()).sign()
        self.adam.step()
        with torch.no_grad():
            low, high = -subjects.MEAN / subjects.STDDEV, (1 - subjects.MEAN) / subjects.STDDEV
            self.latents.clamp_(low, high)

    def run(self, num_steps: int) -> float:
        """The seconds that so many steps take."""
        torch.set_num_threads(self._variant.threads)
        synchronise(self.latents.device)
        started = time.perf_counter()
        for _ in range(num_steps):
            self.step()
        synchronise(self.latents.device)
        return time.perf_counter() - started


def synchronise(device: Any) -> None:
    """Waits for what a GPU still computes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def best_threads(subject: Subject, device: str, *, steps: int = 20) -> int:
    """With how many threads a step of one lane is fastest."""
    if device != "cpu":
        return 1
    problem, seconds = Problem(subject, device), {}
    for threads in {1, os.cpu_count() or 1}:
        variant = Variant("autograd", threads, one_by_one(problem.by_autograd))
        lanes = Lanes(variant, torch.zeros((1, *problem.latent_shape)))
        lanes.run(1)
        seconds[threads] = lanes.run(steps)
    return min(seconds, key=seconds.__getitem__)


def seed(number: int) -> None:
    """Seeds torch's random numbers."""
    torch.manual_seed(number)


def product(size: int, device: str, threads: int) -> measure.Run:
    """A float32 matrix product of this size, by PyTorch."""
    a, b = (torch.randn((size, size), device=device) for _ in range(2))

    def run(repetitions: int) -> float:
        torch.set_num_threads(threads)
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(a, b)
        synchronise(device)
        return time.perf_counter() - started

    return run
