"""`jaxleak attack`: attack the updates of a client, and leave a run folder, a table and a verdict."""

import dataclasses
import inspect
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax
from tyro.conf import FlagCreatePairsOff

import jaxleak as jl
from jaxleak import distributed, models, validate
from jaxleak.attacks.inverting_gradients import VARIANTS
from jaxleak.experiments import data as datasets
from jaxleak.experiments import folder, machine
from jaxleak.experiments.attack import running, scenario
from jaxleak.experiments.attack.client import ASSUMED, DEFAULT_LOCAL_LEARNING_RATE, ONE_BATCH, assumed_by
from jaxleak.experiments.flags import command, flag, known
from jaxleak.names import lookup

# The main job: `jaxleak attack` alone.
DEFAULT_ATTACK = "idlg"
DEFAULT_NUM_STEPS = 80

# What makes the client train, and what only then has a meaning.
_LOCAL = ("local_steps", "local_epochs", "local_batch_size", "local_learning_rate")
_ABOUT_LOCAL = ("shuffle", "assume", "hide_learning_rate")

# How a run is made, and not what it is: other values of these resume the same run.
_FREE = ("out", "quiet", "devices", "memory_limit", "distributed")

_LARGEST_SEED = 2**31 - 2  # the scenario uses the seed after it as well


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """Attack what a client with private images sends, and measure what comes back.

    Each image, or batch of images, is a client that sends one update: a gradient of the model, or, with any of the
    flags --local-steps, --local-epochs, --local-batch-size and --local-learning-rate, what local training changed in
    it. The attack rebuilds the images from the update, from several random starts (seeds). The start with the lowest
    matching loss is the attacker's choice; the true images only measure it.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak attack                                   the main job: under two minutes on two cores
  jaxleak attack --attack inverting_gradients --num-steps 500 --out my-run
  jaxleak attack --attack agic --labels known --model convnet --batch-size 4 --num-steps 500
  jaxleak attack --defense gaussian_noise --images 4
  jaxleak attack --attack agic --batch-size 4 --local-batch-size 1 --num-steps 500
  jaxleak attack --attack inverting_gradients --batch-size 4 --local-epochs 2 --assume simulation --num-steps 500
  jaxleak attack --data mnist --data-dir ~/tensorflow_datasets --images 4
"""

    attack: Annotated[
        str | None,
        flag("NAME", f"The attack: {known(jl.attacks.NAMES)}.", f"{DEFAULT_ATTACK}, with {DEFAULT_NUM_STEPS} steps"),
    ] = None
    variant: Annotated[
        str | None,
        flag("NAME", f"Which form of inverting_gradients: {known(VARIANTS)}.", "the attack's own"),
    ] = None
    defense: Annotated[
        str,
        flag(
            "NAME",
            "What the client does to its gradient, or to that of each local step: none, "
            f"{known(jl.defenses.NAMES)}; with settings as in prune:fraction=0.99, and chains as in "
            "clip:max_norm=4+gaussian_noise:stddev=0.1.",
        ),
    ] = "none"
    informed: Annotated[
        bool,
        FlagCreatePairsOff,
        flag("", "The attacker knows the defense and its strength, and adapts to it (jaxleak.adaptive).", "off"),
    ] = False
    model: Annotated[
        str, flag("NAME", f"The network, untrained: {known(models.NAMES)}; resnet20-4 is 4 times as wide.")
    ] = "lenet"
    data: Annotated[
        str, flag("NAME", f"The images: {known(datasets.NAMES)}, or the name of a data set in --data-dir.")
    ] = "photos"
    data_dir: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where data sets prepared by tensorflow_datasets as array_record lie.", "none"),
    ] = None
    split: Annotated[
        str | None, flag("NAME", "The part of the data set.", "test, else validation, else the only one")
    ] = None
    images: Annotated[int, flag("N", "How many images to attack, a multiple of --batch-size.")] = 8
    batch_size: Annotated[int, flag("N", "How many images a client has, which share one update.")] = 1
    local_steps: Annotated[int | None, flag("N", "How many steps of SGD a client trains.", "one epoch")] = None
    local_epochs: Annotated[
        int | None, flag("N", "In the place of --local-steps, how often it goes through its images.", "1")
    ] = None
    local_batch_size: Annotated[
        int | None, flag("N", "How many images one local step takes; divides --batch-size.", "--batch-size")
    ] = None
    local_learning_rate: Annotated[
        float | None, flag("R", "Of the client's SGD.", f"{DEFAULT_LOCAL_LEARNING_RATE}")
    ] = None
    shuffle: Annotated[
        bool,
        FlagCreatePairsOff,
        flag("", "Each client trains in an order of its own, which the attacker does not know.", "off"),
    ] = False
    assume: Annotated[
        str | None,
        flag(
            "NAME",
            "What the attacker takes local training to be. "
            + "; ".join(f"{name}: {text}" for name, (text, _) in ASSUMED.items()),
            f"one_batch for {' and '.join(ONE_BATCH)}, simulation for the others",
        ),
    ] = None
    hide_learning_rate: Annotated[
        bool,
        FlagCreatePairsOff,
        flag(
            "", "The attacker does not know --local-learning-rate: for attacks by a cosine, without simulation.", "off"
        ),
    ] = False
    seeds: Annotated[int, flag("N", "How many random starts for each update.")] = 4
    num_steps: Annotated[
        int | None,
        flag("N", "How many steps the attack takes.", f"its paper's; {DEFAULT_NUM_STEPS} without --attack"),
    ] = None
    labels: Annotated[
        str | None,
        flag(
            "NAME",
            f"How the attack has the labels, one of {known(jl.labels.NAMES)}: known grants it the true ones, joint "
            "optimises them with the images, the others read them from the update.",
            "the attack's own",
        ),
    ] = None
    total_variation: Annotated[
        float | None, flag("W", "The weight of the prior for smooth images, where the attack has one.", "its paper's")
    ] = None
    generator: Annotated[
        pathlib.Path | None,
        flag(
            "FILE",
            "A trained generator (.safetensors), for attacks through one; python -m jaxleak.experiments.generators "
            "makes them.",
            "an untrained network",
        ),
    ] = None
    normalise: Annotated[
        bool, flag("", "Whether the model normalises its input by the data's mean and stddev.", "on")
    ] = True
    precision: Annotated[
        str,
        flag(
            "NAME",
            f"Of products in the model, on devices that can trade it for speed: {known(jl.observe.PRECISIONS)}.",
        ),
    ] = "float32"
    seed: Annotated[int, flag("N", "Seed of the model's parameters, the defense's noise and the random starts.")] = 0
    out: Annotated[
        pathlib.Path | None,
        flag(
            "FOLDER",
            "Where the files go. A run that was stopped there is resumed; one that is complete is refused.",
            "runs/attack-<UTC date-time>",
        ),
    ] = None
    devices: Annotated[
        int | None, flag("N", "How many devices share the lanes; with CPUs, each core is one.", "all")
    ] = None
    memory_limit: Annotated[
        float | None,
        flag(
            "GIB",
            "How much memory lanes may take, on each device or on a CPU in all; others wait.",
            "3/4 of what is free",
        ),
    ] = None
    distributed: Annotated[
        bool,
        FlagCreatePairsOff,
        flag("", "Share the lanes with the same command on other machines; see docs/clusters.md.", "off"),
    ] = False
    quiet: Annotated[
        bool, FlagCreatePairsOff, flag("", "Print the name of the run folder, and nothing else.", "off")
    ] = False

    def prepare(self) -> Callable[[], int]:
        """Checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError, TypeError: a setting does not fit.
          OSError: a file or folder cannot be read or written.
        """
        machine.prepare(devices=self.devices, together=self.distributed)
        name = DEFAULT_ATTACK if self.attack is None else self.attack
        factory = lookup("attack", name, jl.attacks.NAMES)
        settings = self._settings(name, factory)
        training = self._training()
        assumed = assumed_by(name, training) if self.assume is None else self.assume
        validate.integer_at_least("seeds", self.seeds, 1)
        validate.integer_at_least("seed", self.seed, 0)
        if self.seed > _LARGEST_SEED:
            raise ValueError(f"seed={self.seed}: expected <= {_LARGEST_SEED}")
        if self.memory_limit is not None:
            validate.at_least("memory_limit", self.memory_limit, 0, exclusive=True)
        machine.use(self.devices)
        out = None if self.out is None else self.out.expanduser()
        folder.refuse_taken(out)
        dataset = datasets.load(self.data, self.data_dir, self.split)
        prepared = scenario.prepare(
            model=self.model,
            dataset=dataset,
            images=self.images,
            batch_size=self.batch_size,
            training=training,
            assumed=assumed,
            learning_rate_known=not self.hide_learning_rate,
            defense=self.defense,
            informed=self.informed,
            normalise=self.normalise,
            precision=self.precision,
            model_seed=self.seed,
        )
        attack = factory(
            prepared.observe,
            shape=prepared.shape,
            num_classes=dataset.num_classes,
            **prepared.normalisation(factory),
            **settings,
        )
        _check_leaks(attack, prepared.leaks)
        config = {
            **dataclasses.asdict(self),
            **_resolved(factory, settings),
            "generator": None if self.generator is None else str(self.generator),
            **_resolved_training(training, assumed, self.batch_size, self.hide_learning_rate),
            "attack": name,
            "num_steps": attack.num_steps,
            "split": dataset.split,
        }
        config["data_dir"] = None if self.data_dir is None else str(self.data_dir)
        if distributed.index():
            return lambda: running.follow(attack, prepared, config)
        if out is not None and folder.is_unfinished(out):
            folder.refuse_other(out, config, free=_FREE)
        claimed = folder.claim(out, "attack")
        config["out"] = str(claimed)
        return lambda: running.work(attack, prepared, config, command("attack", self, free=_FREE), claimed)

    def _settings(self, name: str, factory: Callable) -> dict[str, Any]:
        """The flags that are settings of the attack, checked as far as they can be without it."""
        settings: dict[str, Any] = {}
        if self.num_steps is not None or self.attack is None:
            settings["num_steps"] = DEFAULT_NUM_STEPS if self.num_steps is None else self.num_steps
            validate.integer_at_least("num_steps", settings["num_steps"], 1)
        if self.labels is not None:
            settings["labels"] = lookup("labels", self.labels, jl.labels.NAMES)
        for setting in ("variant", "total_variation", "generator"):
            value = getattr(self, setting)
            if value is None:
                continue
            if not _takes(factory, setting):
                takers = known(other for other, make in jl.attacks.NAMES.items() if _takes(make, setting))
                raise ValueError(f"{setting}={value}: the attack {name} has no such setting: those that do: {takers}")
            settings[setting] = models.load_generator(value.expanduser()) if setting == "generator" else value
        if self.variant is not None:
            lookup("variant", self.variant, VARIANTS)
        if self.total_variation is not None and not (math.isfinite(self.total_variation) and self.total_variation >= 0):
            raise ValueError(f"total_variation={self.total_variation}: expected a finite number >= 0")
        return settings

    def _training(self) -> scenario.Training | None:
        """What the client does, or None where it sends one gradient."""
        if all(getattr(self, name) is None for name in _LOCAL):
            for name in _ABOUT_LOCAL:
                value = getattr(self, name)
                if value not in (None, False):
                    flags = ", ".join(f"--{other.replace('_', '-')}" for other in _LOCAL)
                    raise ValueError(f"{name}={value}: the client sends one gradient: expected one of {flags}")
            return None
        rate = DEFAULT_LOCAL_LEARNING_RATE if self.local_learning_rate is None else self.local_learning_rate
        return scenario.Training(
            rate,
            batch_size=self.local_batch_size,
            num_steps=self.local_steps,
            num_epochs=self.local_epochs,
            shuffle=self.shuffle,
        )


def _takes(factory: Callable, setting: str) -> bool:
    return setting in inspect.signature(factory).parameters


def _resolved(factory: Callable, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the attack's own defaults come to, for flags that were left to it."""
    parameters = inspect.signature(factory).parameters
    values = {name: parameters[name].default for name in ("labels", "variant", "total_variation") if name in parameters}
    values.update(settings)
    if "variant" in values and values["total_variation"] is None:
        values["total_variation"] = VARIANTS[values["variant"]]["total_variation"]
    values["labels"] = values["labels"].__name__
    return values


def _resolved_training(
    training: scenario.Training | None, assumed: str, batch_size: int, hidden: bool
) -> dict[str, Any]:
    """What the flags of local training come to; nothing where the client does not train."""
    if training is None:
        return dict.fromkeys((*_LOCAL, *_ABOUT_LOCAL))
    return {
        "local_steps": training.steps(batch_size),
        "local_batch_size": training.batch_size or batch_size,
        "local_learning_rate": training.learning_rate,
        "shuffle": training.shuffle,
        "assume": assumed,
        "hide_learning_rate": hidden,
    }


def _check_leaks(attack: jl.Attack, leaks: jl.Leak) -> None:
    """Refuses leaks and labels that the attack refuses, by tracing its start for one of them."""
    validate.leak(attack.observe, leaks, attack.shape, lanes=(0, 1))
    own = {name: getattr(leaks, name) for name in ("update", "labels", "statistics")}
    first = jax.tree.map(lambda leaf: leaf[0], own)
    jax.eval_shape(attack.init, jax.random.key(0), dataclasses.replace(leaks, **first))
