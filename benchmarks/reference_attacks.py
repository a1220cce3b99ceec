"""Whole attacks in PyTorch, one lane each, as papers' code runs them; the labels are granted."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch  # pyrefly: ignore  # an optional extra

from jaxleak.benchmarks.reference import Lanes, Problem, Variant, one_by_one
from jaxleak.benchmarks.subjects import Subject


class Lane(Protocol):
    """An attack under way."""

    def step(self) -> None:
        """One step."""
        ...

    def images(self) -> np.ndarray:
        """Where it stands [n, height, width, channels]."""
        ...


def _images(problem: Problem, latent: torch.Tensor) -> np.ndarray:
    x = problem.mean + problem.stddev * latent.detach()
    return x.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


class InvertingGradients:
    """Adam on the sign, its learning rate times 0.1 at three places of the run."""

    def __init__(self, subject: Subject, device: str, threads: int, num_steps: int, *, total_variation: float = 1e-4):
        self._problem = Problem(subject, device)
        self._problem.total_variation = total_variation
        variant = Variant("autograd", threads, one_by_one(self._problem.by_autograd))
        self._lanes = Lanes(variant, torch.randn((1, *self._problem.latent_shape), device=device))
        milestones = [int(num_steps // divisor) for divisor in (2.667, 1.6, 1.142)]
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(self._lanes.adam, milestones, gamma=0.1)

    def step(self) -> None:
        """One step."""
        self._lanes.step()
        self._schedule.step()

    def images(self) -> np.ndarray:
        """Where it stands."""
        return _images(self._problem, self._lanes.latents[0])


class DlgProblem(Problem):
    """What DLG minimises: the squared L2 distance of the gradients to those received."""

    mean, stddev = 0.0, 1.0

    def objective(self, latent: torch.Tensor, gradients: Iterator[torch.Tensor]) -> torch.Tensor:
        """The distance."""
        del latent
        return (torch.cat([gradient.reshape(-1) for gradient in gradients]) - self.target).square().sum()


class DlgAdam:
    """Adam on DLG's distance; the labels are granted, where the attack has to find them."""

    def __init__(self, subject: Subject, device: str, threads: int, num_steps: int):
        del num_steps
        torch.set_num_threads(threads)
        self._problem = DlgProblem(subject, device)
        self._latent = torch.randn(self._problem.latent_shape, device=self._problem.device).requires_grad_()
        self._optimizer = torch.optim.Adam([self._latent], lr=0.1, fused=True)

    def step(self) -> None:
        """One step."""
        self._latent.grad, _ = self._problem.by_autograd(self._latent)
        self._optimizer.step()

    def images(self) -> np.ndarray:
        """Where it stands."""
        return _images(self._problem, self._latent)


class Idlg:
    """torch.optim.LBFGS, 20 evaluations a step; a lane that diverges or stalls starts again, as in jaxleak's."""

    def __init__(self, subject: Subject, device: str, threads: int, num_steps: int):
        del num_steps
        torch.set_num_threads(threads)
        self._problem = DlgProblem(subject, device)
        self._start()

    def _start(self) -> None:
        self._latent = torch.randn(self._problem.latent_shape, device=self._problem.device).requires_grad_()
        self._optimizer = torch.optim.LBFGS([self._latent], lr=1.0, max_iter=20, history_size=100)
        self._first: float | None = None

    def _evaluate(self) -> torch.Tensor:
        self._latent.grad, value = self._problem.by_autograd(self._latent)
        return value

    def step(self) -> None:
        """One step."""
        before = self._latent.detach().clone()
        loss = float(self._optimizer.step(self._evaluate))  # before the step
        self._first = loss if self._first is None else self._first
        moved = bool((self._latent.detach() != before).any())
        stalled = not moved and loss > 1e-2 * self._first
        sound = bool(self._latent.detach().isfinite().all())
        if not (sound and math.isfinite(loss) and loss <= 1e3 * self._first) or stalled:
            self._start()

    def images(self) -> np.ndarray:
        """Where it stands."""
        return _images(self._problem, self._latent)


NAMES: Mapping[str, Callable[..., Lane]] = {
    "dlg_adam": DlgAdam,
    "idlg": Idlg,
    "inverting_gradients": InvertingGradients,
}
"""`attack(subject, device, threads, num_steps, **settings)` by name."""
