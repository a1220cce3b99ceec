"""Trains a DCGAN from the gradients that clients share, by GIML, and sees none of their images.

Each step, some clients send the gradient of a batch of theirs, each is attacked through the generator as it is, and
the generator follows the attacks. The target then takes a step of FedSGD by those gradients. Images are looked at for
the figures alone.

Command: python -m jaxleak.experiments.generators.giml --data cifar10 --data-dir FOLDER --weights-dir FOLDER \
--out FOLDER
Time: see `seconds` in the rows that it leaves.
"""

import contextlib
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import interrupts, models, progress, validate
from jaxleak.experiments import folder
from jaxleak.experiments.generators import options
from jaxleak.experiments.generators.options import INTERRUPTED
from jaxleak.experiments.generators.results import JUDGED, Results
from jaxleak.experiments.generators.resuming import Reached
from jaxleak.experiments.generators.training import running_statistics
from jaxleak.models.dcgan import DCGAN

# A row is an evaluated step; `clients` is how many were attacked so far, `gradients` how many of the target that took,
# `matching_loss` the mean that the last step's attacks ended at.
ROW: folder.Columns = {
    "step": (int,),
    "clients": (int,),
    "gradients": (int,),
    "matching_loss": (float, type(None)),
    **JUDGED,
}

_CODES = 64


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
    """Train a generator from shared gradients alone, by GIML, and say how good it is.

    The folder gets generator.safetensors (float16), samples.png, results.jsonl and config.json. Ctrl-C evaluates once
    more and keeps all; a process that was killed loses what came after the last evaluation. The same command goes on.

    Attributes:
      model: what the clients train, untrained at first; a name of jaxleak.models.
      clients: attacked a step, each once until all images were attacked.
      batch_size: images of a client.
      num_steps: of the attack on each client.
      steps: of the generator.
      every: steps between evaluations.
      learning_rate: of the codes.
      weights_learning_rate: of the generator's weights in an attack.
      meta_learning_rate: of the generator.
      target_learning_rate: of FedSGD, by the mean of the clients' gradients of a step; 0 leaves the target untrained.
    """

    model: str = "lenet"
    clients: int = 8
    batch_size: int = 4
    num_steps: int = 200
    steps: int = 60
    every: int = 5
    learning_rate: float = 3e-2
    weights_learning_rate: float = 1e-3
    meta_learning_rate: float = 1e-2
    target_learning_rate: float = 1e-2


@dataclasses.dataclass(frozen=True)
class Work:
    """A training run with all it needs.

    Attributes:
      learning: GIML's functions, of which `step` is compiled.
      shared: `shared(params, x, y) -> Leak`, what clients with images [clients, n, ...] send.
      followed: `followed(params, leaks) -> params` of the target after a step.
      target: parameters of the target.
      variables: `variables(weights, key)` of the generator, with running statistics.
      sample: `sample(variables, code, y) -> images`.
      results: where its results go.
      options: of the command.
    """

    learning: jl.attacks.MetaLearning
    shared: Callable[..., jl.Leak]
    followed: Callable[..., Any]
    target: Any
    variables: Callable[..., Any]
    sample: Callable[..., jax.Array]
    results: Results
    options: Options

    def run(self) -> int:
        """Trains; after Ctrl-C the generator of the last finished step is kept, to go on from.

        Returns:
          The exit code, 130 after Ctrl-C.

        Raises:
          FloatingPointError: the loss became NaN; what was written before stays.
          ValueError: the checkpoint is torn, or of another training.
          OSError: a file cannot be written.
        """
        given, pictures = self.options, self.results.pictures
        key = jax.random.key(given.seed)
        reached = self.results.begin(
            (self.learning.init(jax.random.fold_in(key, 0)), self.target),
            lambda row, count: self._evaluated(row["step"]) and row["step"] <= count,
        )
        state, params = reached.state
        clients = itertools.islice(self._clients(), reached.count, None)
        started = time.perf_counter() - reached.seconds
        with contextlib.ExitStack() as stack:
            requested = stack.enter_context(interrupts.deferred())
            report = stack.enter_context(progress.bar("giml", given.steps, shown=not given.quiet))
            for step in range(reached.count + 1, given.steps + 1):
                indices = next(clients)
                leaks = self.shared(params, pictures.x[indices], pictures.y[indices])
                state = self.learning.step(jax.random.fold_in(key, 1 + step), state, leaks)
                params = self.followed(params, leaks)
                # Waited for, as a step is an attack on every client: the bar and Ctrl-C go by whole ones.
                loss = float(state.loss)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"step {step}: the matching loss is {loss}: expected a finite number")
                report(step, loss)
                if self._evaluated(step) or requested():
                    seconds = time.perf_counter() - started
                    self._evaluate(state.weights, step, loss, seconds)
                    self.results.keep(Reached((state, params), step, seconds=seconds))
                if requested():
                    return INTERRUPTED
        self.results.end()
        return 0

    def _evaluated(self, step: int) -> bool:
        return step % self.options.every == 0 or step == self.options.steps

    def _clients(self) -> Iterator[np.ndarray]:
        """Indices [clients, batch_size] of images, none twice before all others."""
        wanted, left, passes = (self.options.clients, self.options.batch_size), np.zeros(0, int), 0
        while True:
            while len(left) < math.prod(wanted):
                passes += 1
                left = np.concatenate([left, self.results.pictures.order(self.options.seed, passes)])
            taken, left = np.split(left, [math.prod(wanted)])
            yield taken.reshape(wanted)

    def _evaluate(self, weights: Any, step: int, loss: float, seconds: float) -> None:
        clients = step * self.options.clients
        self.results.add(
            {
                "step": step,
                "clients": clients,
                "gradients": clients * self.options.num_steps,
                "matching_loss": loss,
            },
            f"step {step}",
            self.variables(weights, jax.random.fold_in(self.results.key, 0)),
            self.sample,
            seconds,
        )


def prepare(given: Options) -> Work:
    """Checks everything and reads the images.

    Raises:
      ValueError: names the option that does not fit.
      OSError: the folder cannot be made.
    """
    pictures, judge = options.prepare(
        given,
        batch_size=given.batch_size,
        integers=("clients", "batch_size", "num_steps", "steps", "every"),
        rates=("learning_rate", "weights_learning_rate", "meta_learning_rate"),
    )
    validate.at_least("target_learning_rate", given.target_learning_rate, 0)
    shape = pictures.x.shape[1:]
    normalisation = {"mean": pictures.mean, "stddev": pictures.stddev}
    target = models.create(given.model, num_classes=pictures.num_classes, **normalisation)
    observe = jl.observe.gradient(jl.cross_entropy(target.apply))
    generator = DCGAN(shape=shape, width=given.width)
    settings = {"width": given.width, "code": generator.code}
    learning = jl.attacks.giml(
        observe,
        shape=(given.batch_size, *shape),
        num_classes=pictures.num_classes,
        generator=models.generator("dcgan", (1, *shape), **settings),
        num_steps=given.num_steps,
        learning_rate=given.learning_rate,
        weights_learning_rate=given.weights_learning_rate,
        meta_learning_rate=given.meta_learning_rate,
        stddev=pictures.stddev,
    )
    images = jax.ShapeDtypeStruct((given.batch_size, *shape), jnp.float32)
    try:
        jax.eval_shape(target.init, jax.random.key(0), images)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model={given.model}: refuses images of shape {shape} of {given.data}: {error}") from error

    def shared(params: Any, x: jax.Array, y: jax.Array) -> jl.Leak:
        updates = jax.vmap(lambda x, y: observe(params, jl.Batch(x, y)))(x, y)
        return jl.Leak(params, updates, given.batch_size)

    def followed(params: Any, leaks: jl.Leak) -> Any:
        return jax.tree.map(lambda p, g: p - given.target_learning_rate * jnp.mean(g, axis=0), params, leaks.update)

    def variables(weights: Any, key: jax.Array) -> Any:
        untrained = generator.init(key, jnp.zeros((1, generator.code)))
        return running_statistics(generator, {**untrained, "params": weights}, key, _CODES)

    results = options.begin(
        given,
        "jaxleak.experiments.generators.giml",
        name="dcgan",
        settings={"shape": [1, *shape], **settings},
        pictures=pictures,
        judge=judge,
        columns=ROW,
        title=f"dcgan by GIML, {given.model},",
    )
    return Work(
        learning=learning._replace(step=jax.jit(learning.step, donate_argnums=1)),
        shared=jax.jit(shared),
        followed=jax.jit(followed),
        target=jax.jit(target.init)(jax.random.key(given.seed), jnp.zeros(images.shape)),
        variables=jax.jit(variables),
        sample=jax.jit(lambda variables, code, y: generator.apply(variables, code)),
        results=results,
        options=given,
    )


def main(given: Options) -> int:
    """Trains, and returns the exit code: 0, 2 for what was refused, 130 after Ctrl-C."""
    return options.run("generators.giml", lambda: prepare(given))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
