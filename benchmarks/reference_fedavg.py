"""Simulated local steps in PyTorch, as papers' code runs them: unrolled, each on the graph of those before."""

from typing import Any

import torch  # pyrefly: ignore  # an optional extra
import torch.nn.functional as F  # pyrefly: ignore  # noqa: N812

from jaxleak.benchmarks import measure, twins
from jaxleak.benchmarks.reference import Lanes, Problem, Variant, one_by_one
from jaxleak.benchmarks.subjects import Subject

Tree = Any


class Simulation(Problem):
    """What `subjects.Subject.attack` minimises where the client took several steps of local SGD.

    Args:
      subject: whose leak is `params - new_params`.
      num_steps: local steps, each on the next images; they divide the images.
      learning_rate: of the client.
      device: where it is computed.

    Source: Geiping et al. 2020, §5, and `loss_steps` of the reference implementation.
    """

    def __init__(self, subject: Subject, num_steps: int, learning_rate: float, device: str = "cpu"):
        super().__init__(subject, device)
        self._learning_rate = learning_rate
        self._ids = torch.arange(len(self._labels), device=device).chunk(num_steps)

    def update(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`params - new_params` of images [n, channels, height, width], its leaves in order; differentiable."""
        for leaf in twins.leaves(self._params):
            leaf.requires_grad_()
        params = self._params
        for ids in self._ids:
            loss = F.cross_entropy(self._forward(params | self._state, x[ids[0] : ids[-1] + 1]), self._labels[ids])
            gradients = iter(torch.autograd.grad(loss, list(twins.leaves(params)), create_graph=True))
            params = _moved(params, gradients, self._learning_rate)
        return [old - new for old, new in zip(twins.leaves(self._params), twins.leaves(params), strict=True)]

    def by_autograd(self, latent: torch.Tensor, *, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the objective, and its value."""
        latent = latent.detach().requires_grad_()
        x = self.mean + self.stddev * latent
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        value = self.objective(latent, iter(self.update(x)))
        return torch.autograd.grad(value, latent)[0], value.detach()


def _moved(params: Tree, gradients: Any, learning_rate: float) -> Tree:
    """The parameters after a step of SGD."""
    return {
        name: _moved(branch, gradients, learning_rate)
        if isinstance(branch, dict)
        else branch - learning_rate * next(gradients)
        for name, branch in params.items()
    }


def fastest(contiguous: Problem, last: Problem, *, threads: int, seconds: float) -> tuple[Lanes, dict[str, float]]:
    """One lane in the form that a short trial found to be fastest: with one thread or all, channels last or not.

    Args:
      contiguous: the problem.
      last: the same once more; its kernels are laid out anew.
      threads: how many torch may have on a CPU.
      seconds: how long a trial lasts.

    Returns:
      The lane; and milliseconds a step of every form.
    """
    last.channels_last()
    forms = {"": contiguous.by_autograd, ", channels last": lambda latent: last.by_autograd(latent, channels_last=True)}
    latent = torch.randn((1, *contiguous.latent_shape), device=contiguous.device)
    counts = sorted({1, threads}) if contiguous.device == "cpu" else [1]
    lanes, trials = {}, {}
    for form, function in forms.items():
        for count in counts:
            name = f"autograd{form}, {count} thread{'' if count == 1 else 's'}"
            lanes[name] = Lanes(Variant(name, count, one_by_one(function)), latent)
            lanes[name].run(1)
            steps = max(1, int(seconds / lanes[name].run(1) / 3))
            trials[name] = measure.digits(1e3 * min(lanes[name].run(steps) for _ in range(3)) / steps)
    best = min(trials, key=trials.__getitem__)
    return lanes[best], {best: trials.pop(best), **trials}
