"""`jaxleak audit`: how much leaks of an update of one's own."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, ClassVar

from tyro.conf import FlagCreatePairsOff

import jaxleak as jl
from jaxleak import models, validate
from jaxleak.experiments import folder, machine
from jaxleak.experiments.attack import client
from jaxleak.experiments.flags import command, flag, known
from jaxleak.names import lookup

_LARGEST_SEED = 2**31 - 2


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Say how much of your own client's images its update gives away.

    Attacks that suit the client run on the update, and on updates of photographs from the same client, which say what
    they can do with images that are known. Your images need not be given; with --truth they measure the result.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak audit --before w0.safetensors --gradient g.npz --model my_code:make --shape 32 32 3 --num-classes 10
  jaxleak audit --before w0.npz --after w1.npz --model lenet --shape 28 28 1 --num-classes 10 --batch-size 4 \\
    --local-steps 4 --local-learning-rate 0.01

files:
  arrays by name, npz or safetensors; names are paths in the parameters, with "/" or "." between: params/dense1/kernel
model:
  a name of jaxleak.models, or package.module:function of a function without arguments that returns a flax linen module
  or apply(params, x) -> logits; x are images [n, height, width, channels] in [0, 1]
"""

    before: Annotated[
        pathlib.Path | None, flag("FILE", "The parameters that the client started from; has to be given.", "none")
    ] = None
    after: Annotated[pathlib.Path | None, flag("FILE", "Those that it sent back; or", "none")] = None
    gradient: Annotated[pathlib.Path | None, flag("FILE", "the gradient that it sent.", "none")] = None
    model: Annotated[str, flag("NAME", f"{known(models.NAMES)}, or package.module:function.")] = "lenet"
    shape: Annotated[tuple[int, ...], flag("H W C", "Height, width and channels of its images.")] = (32, 32, 3)
    num_classes: Annotated[int, flag("N", "How many classes there are.")] = 10
    batch_size: Annotated[int, flag("N", "How many images the client has.")] = 1
    local_steps: Annotated[int | None, flag("N", "How many steps of SGD it took.", "one epoch, with --after")] = None
    local_batch_size: Annotated[int | None, flag("N", "How many images one local step took.", "--batch-size")] = None
    local_learning_rate: Annotated[
        float | None, flag("R", "Of its SGD.", f"{client.DEFAULT_LOCAL_LEARNING_RATE}, with --after")
    ] = None
    assume: Annotated[
        str,
        flag("NAME", "What the attacker takes local training to be: " + known(client.ASSUMED) + "."),
    ] = "one_batch"
    truth: Annotated[
        pathlib.Path | None, flag("FILE", "Arrays x [n, height, width, channels] and y [n] to measure with.", "none")
    ] = None
    attack: Annotated[
        tuple[str, ...], flag("NAME...", f"Of {known(jl.attacks.NAMES)}.", "those that suit the client")
    ] = ()
    seeds: Annotated[int, flag("N", "How many random starts.")] = 4
    num_steps: Annotated[int | None, flag("N", "How many steps each attack takes.", "its paper's")] = None
    seed: Annotated[int, flag("N", "Of the random starts and of what is made up.")] = 0
    out: Annotated[
        pathlib.Path | None, flag("FOLDER", "Where the files go: new or empty.", "runs/audit-<UTC date-time>")
    ] = None
    quiet: Annotated[bool, FlagCreatePairsOff, flag("", "Print the name of the folder, and nothing else.", "off")] = (
        False
    )

    def prepare(self) -> Callable[[], int]:
        """Reads and checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError: a file, the model or a number does not fit; names it.
          OSError: a file cannot be read, or the folder not be written to.
        """
        machine.prepare(devices=None, together=False)
        if self.before is None:
            raise ValueError("before=None: expected the file of the parameters that the client started from")
        if (self.after is None) == (self.gradient is None):
            raise ValueError("after, gradient: expected one of them, what the client sent")
        for name in ("num_classes", "batch_size", "seeds"):
            validate.integer_at_least(name, getattr(self, name), 2 if name == "num_classes" else 1)
        validate.integer_at_least("seed", self.seed, 0)
        if self.seed > _LARGEST_SEED:
            raise ValueError(f"seed={self.seed}: expected <= {_LARGEST_SEED}")
        if self.num_steps is not None:
            validate.integer_at_least("num_steps", self.num_steps, 1)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: expected height, width and channels, each >= 1")
        for name in self.attack:
            lookup("attack", name, jl.attacks.NAMES)
        folder.refuse_taken(None if self.out is None else self.out.expanduser())
        # Imported here since it takes a second, which `jaxleak --help` need not pay.
        from jaxleak.experiments.audit import declaring, measuring

        shape = (self.batch_size, *self.shape)
        training = self._training()
        model = declaring.target(self.model, self.num_classes)
        declared = declaring.declare(
            model,
            declaring.parameters(self.before.expanduser(), model, shape),
            after=None if self.after is None else declaring.parameters(self.after.expanduser(), model, shape),
            gradient=None if self.gradient is None else declaring.trainable(self.gradient.expanduser()),
            shape=shape,
            num_classes=self.num_classes,
            training=training,
            assumed="simulation" if training is None else self.assume,
        )
        truth = None if self.truth is None else declaring.truth(self.truth.expanduser(), shape, self.num_classes)
        attacks = self.attack or measuring.suitable(declared)
        out = folder.claim(None if self.out is None else self.out.expanduser(), "audit")

        def work() -> int:
            from jaxleak.experiments.audit import reporting

            found = []
            for name in attacks:
                if not self.quiet:
                    print(
                        f"{name}: the update and {measuring.PHOTOGRAPHS} batches of photographs, {self.seeds} seeds",
                        file=sys.stderr,
                        flush=True,
                    )
                found.append(
                    measuring.measure(
                        declared,
                        name,
                        seeds=self.seeds,
                        num_steps=self.num_steps,
                        seed=self.seed,
                        truth=truth,
                        progress=sys.stderr.isatty() and not self.quiet,
                    )
                )
            config = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in dataclasses.asdict(self).items()}
            record = {"command": command("audit", self, free=("out", "quiet")), "config": config, **folder.provenance()}
            sentences = measuring.verdict(found, declared.doubts, self.batch_size)
            reporting.leave(declared, found, sentences, truth, record, out)
            print(out if self.quiet else "\n".join([*sentences, f"files: {out}/ ({', '.join(reporting.FILES)})"]))
            return 0

        return work

    def _training(self) -> client.Training | None:
        """What the client does, or None where it sends one gradient."""
        local = ("local_steps", "local_batch_size", "local_learning_rate")
        if self.after is None:
            for name in local:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)}: the client sends one gradient: expected --after")
            return None
        rate = client.DEFAULT_LOCAL_LEARNING_RATE if self.local_learning_rate is None else self.local_learning_rate
        training = client.Training(rate, batch_size=self.local_batch_size, num_steps=self.local_steps)
        training.steps(self.batch_size)
        return training
