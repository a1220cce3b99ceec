"""Which form of PyTorch's step is fastest: tried for each model and number of lanes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch  # pyrefly: ignore  # an optional extra

from jaxleak import memory
from jaxleak.benchmarks import measure
from jaxleak.benchmarks.reference import Lanes, Problem, Variant, one_by_one
from jaxleak.benchmarks.subjects import Subject


class Chooser:
    """Tries forms of a subject's step, and remembers the best of those that take the lanes one by one.

    Args:
      subject: the subject.
      device: "cpu" or "cuda".
      threads: how many threads torch may have.
      torch_compile: try torch.compile as well, which takes minutes for deep models.
      seconds: how long a trial lasts.
    """

    def __init__(self, subject: Subject, *, device: str, threads: int, torch_compile: bool, seconds: float = 0.3):
        self._problem = Problem(subject, device)
        self._channels_last = Problem(subject, device).channels_last()
        self._threads = sorted({1, threads}) if device == "cpu" else [1]
        self._compile, self._seconds = torch_compile, seconds
        self._sequential: Variant | None = None
        self._eager: Variant | None = None

    def free_bytes(self) -> float:
        """The memory that a new program can have."""
        return memory.available(jax.devices()) if self._problem.device == "cpu" else torch.cuda.mem_get_info()[0]

    def choose(self, lanes: int, most_together: int) -> tuple[Lanes, Lanes | None, dict[str, Any]]:
        """The fastest form for so many lanes.

        Args:
          lanes: how many lanes.
          most_together: how many lanes memory has room for at once.

        Returns:
          The lanes; those of the fastest form by autograd, one by one and not compiled; and what is to be said: the
          `variant`; the `compile_seconds` of its first step; `trials`, the milliseconds a lane-step, or why it failed,
          of each form that was tried.

        Raises:
          RuntimeError: no form works.
        """
        latents = torch.randn((lanes, *self._problem.latent_shape), device=self._problem.device)
        trials: dict[str, float | str] = {} if self._compile else {"torch.compile": "not tried"}
        compile_seconds: dict[str, float] = {}
        found: list[tuple[float, Variant]] = []

        def attempt(variant: Variant) -> None:
            try:
                trials[variant.name], compile_seconds[variant.name] = self._try(variant, latents)
            except Exception as error:  # torch raises of many classes; whatever it is, the form does not work
                trials[variant.name] = measure.reason(error)
            else:
                found.append((trials[variant.name], variant))

        if self._sequential is None:
            for variant in self._by_autograd():
                attempt(variant)
            if found:
                self._eager = min(found, key=lambda pair: pair[0])[1]
            for variant in self._compiled(found, self._problem.by_transform, "torch.compile"):
                attempt(variant)
            if found:
                self._sequential = min(found, key=lambda pair: pair[0])[1]
        else:
            attempt(self._sequential)
        if 1 < lanes <= most_together:
            together = torch.func.vmap(self._problem.by_transform)
            start = len(found)
            for threads in self._threads:
                attempt(Variant(f"torch.func.vmap, {_plural(threads)}", threads, lambda z: together(z)[0]))
            for variant in self._compiled(found[start:], together, "torch.compile of vmap"):
                attempt(variant)
        elif lanes > 1:
            trials["torch.func.vmap"] = f"not tried: memory has room for about {most_together} lanes"
        if not found:
            raise RuntimeError(f"no form works: {trials}")
        best = min(found, key=lambda pair: pair[0])[1]
        return (
            Lanes(best, latents),
            None if self._eager is None else Lanes(self._eager, latents),
            {
                "variant": best.name,
                "compile_seconds": compile_seconds[best.name],
                "trials": trials,
            },
        )

    def _by_autograd(self) -> Iterator[Variant]:
        for threads in self._threads:
            contiguous = one_by_one(self._problem.by_autograd)
            yield Variant(f"autograd, {_plural(threads)}", threads, contiguous)
            last = one_by_one(lambda latent: self._channels_last.by_autograd(latent, channels_last=True))
            yield Variant(f"autograd, channels last, {_plural(threads)}", threads, last)

    def _compiled(self, eager: list[tuple[float, Variant]], function: Callable, name: str) -> Iterator[Variant]:
        """The function compiled, with as many threads as suited the eager forms best: they are compiled in."""
        if not (self._compile and eager):
            return
        threads = min(eager, key=lambda pair: pair[0])[1].threads
        torch.set_num_threads(threads)
        compiled = torch.compile(function, dynamic=False)
        gradient = (lambda z: compiled(z)[0]) if name.endswith("vmap") else one_by_one(compiled)
        yield Variant(f"{name}, {_plural(threads)}", threads, gradient)

    def _try(self, variant: Variant, latents: torch.Tensor) -> tuple[float, float]:
        """Milliseconds a lane-step, the best of three, and seconds of the first step less those of the second."""
        lanes = Lanes(variant, latents)
        first, second = lanes.run(1), lanes.run(1)
        num_steps = max(1, int(self._seconds / second / 3))
        seconds = min(lanes.run(num_steps) for _ in range(3)) / num_steps
        return round(1e3 * seconds / len(latents), 4), round(max(first - second, 0.0), 1)


def _plural(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
