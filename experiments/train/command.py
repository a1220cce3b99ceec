"""`jaxleak train`: federated training with any defense, and a run folder with the curves and the leaks."""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
from tyro.conf import FlagCreatePairsOff

from jaxleak import defenses, fl, models, validate
from jaxleak.experiments import data as datasets
from jaxleak.experiments import defending, flags, folder, machine
from jaxleak.experiments.flags import flag, known
from jaxleak.experiments.train import federation, partitioning, privacy, running
from jaxleak.fl.local import Work
from jaxleak.fl.rounds import DEFENDED
from jaxleak.fl.training import NONFINITE
from jaxleak.names import lookup

# How a run is made, and not what it is: other values of these resume the same run.
_FREE = ("out", "quiet", "devices")

_LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a model on clients that keep their images, with or without a defense, and measure what it learns.

    In each round clients train on their own images from the model of the server, and send by how much their parameters
    changed; the server averages that. The model is evaluated on images that no client has. Each seed is a run of its
    own: other initial parameters, other images for each client, another order. With --record, what chosen clients sent
    is kept for an attacker.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak train                                    ten clients with handwritten digits, well under a minute
  jaxleak train --defense gaussian_noise:variance=0.001 --rounds 40 --out my-run
  jaxleak train --partition dirichlet:concentration=0.5 --clients 20 --clients-per-round 5
  jaxleak train --partition class_split:classes=0-1/2-9 --learning-rate 0.005 0.02
  jaxleak train --defense dp_sgd:max_norm=1,stddev=0.05 --record 0:3,5:3
  jaxleak train --data mnist --data-dir ~/tensorflow_datasets --clients 15 --rounds 50 --seeds 1 --every 5
"""

    model: Annotated[str, flag("NAME", f"The network: {known(models.NAMES)}; resnet20-4 is 4 times as wide.")] = (
        "lenet5"
    )
    data: Annotated[
        str, flag("NAME", f"The images: {known(datasets.NAMES)}, or the name of a data set in --data-dir.")
    ] = "digits"
    data_dir: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where data sets prepared by tensorflow_datasets as array_record lie.", "none"),
    ] = None
    split: Annotated[str, flag("NAME", "The part of the data set that clients have.")] = "train"
    test_split: Annotated[
        str | None, flag("NAME", "The part that nobody has, to evaluate on.", "test, else validation")
    ] = None
    images: Annotated[int | None, flag("N", "How many images clients have, the first of the split.", "all")] = None
    clients: Annotated[
        int | None,
        flag("N", "How many clients.", f"{federation.DEFAULT_NUM_CLIENTS}, or as many as --partition names"),
    ] = None
    clients_per_round: Annotated[int | None, flag("N", "How many of them are drawn each round.", "all")] = None
    partition: Annotated[
        str,
        flag(
            "NAME",
            f"Who has which images: {known(partitioning.NAMES)}; with settings as in dirichlet:concentration=0.5, "
            "label_shards:shard_size=200,smallest=1,largest=9 or class_split:classes=0-1/2-9,counts=400/100.",
        ),
    ] = "iid"
    rounds: Annotated[int, flag("N", "How many rounds.")] = 20
    batch_size: Annotated[int, flag("N", "How many images a local step takes.")] = 32
    num_steps: Annotated[int | None, flag("N", "How many local steps a client takes in a round.", "one epoch")] = None
    local_epochs: Annotated[
        int | None, flag("N", "In the place of --num-steps, how often a client goes through its images.", "1")
    ] = None
    learning_rate: Annotated[
        tuple[float, ...], flag("R ...", "Of the clients' SGD, one for all or one for each.", "0.1")
    ] = (0.1,)
    schedule: Annotated[str, flag("NAME", f"Of the learning rate over rounds: {known(fl.SCHEDULES)}.")] = "constant"
    scheme: Annotated[
        str,
        flag("NAME", "How the server averages. " + "; ".join(f"{name}: {text}" for name, text in fl.SCHEMES.items())),
    ] = "II"
    defense: Annotated[
        str,
        flag(
            "NAME",
            f"What clients do against leakage: none, {known(defenses.NAMES)}; with settings as in "
            "prune:fraction=0.99, and chains as in clip:max_norm=4+gaussian_noise:stddev=0.1.",
        ),
    ] = "none"
    defended: Annotated[
        str,
        flag(
            "NAME",
            "Where the defense stands: on the gradient of each local step (steps), or on what is sent (update), in "
            "units of a gradient.",
        ),
    ] = "steps"
    nonfinite: Annotated[
        str,
        flag("NAME", "What becomes of updates with NaN or infinity: refuse stops the run, exclude leaves them out."),
    ] = "refuse"
    normalise: Annotated[
        bool, flag("", "Whether the model normalises its input by the data's mean and stddev.", "on")
    ] = True
    seeds: Annotated[int, flag("N", "How many runs, from as many seeds.")] = 3
    seed: Annotated[int, flag("N", "The first seed: of parameters, partition, orders and the defense's noise.")] = 0
    every: Annotated[int, flag("N", "How many rounds lie between two evaluations; the last has one in any case.")] = 1
    record: Annotated[
        str | None,
        flag(
            "N",
            "Keep what clients 0 to N-1 send in the first round, or what pairs of round and client send, counted from "
            "0, as in 0:3,5:3. It goes to leaks.safetensors, with the indices of their images.",
            "nothing",
        ),
    ] = None
    out: Annotated[
        pathlib.Path | None,
        flag(
            "FOLDER",
            "Where the files go. A run that was stopped there is resumed; one that is complete is refused.",
            "runs/train-<UTC date-time>",
        ),
    ] = None
    devices: Annotated[
        int | None, flag("N", "How many devices share the clients; with CPUs, each core is one.", "all")
    ] = None
    quiet: Annotated[
        bool, FlagCreatePairsOff, flag("", "Print the name of the run folder, and nothing else.", "off")
    ] = False

    def prepare(self) -> Callable[[], int]:
        """Checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError, TypeError: a setting does not fit.
          OSError: a file or folder cannot be read or written.
        """
        machine.prepare(devices=self.devices, together=False)
        clients, work = self._check()
        record = self._pairs(clients)
        devices = machine.use(self.devices)
        out = None if self.out is None else self.out.expanduser()
        folder.refuse_taken(out)
        dataset = datasets.load(self.data, self.data_dir, self.split)
        test = datasets.load(self.data, self.data_dir, self.test_split)
        images = len(dataset) if self.images is None else self.images
        rate = self.learning_rate[0] if len(self.learning_rate) == 1 else list(self.learning_rate)
        config = {
            **dataclasses.asdict(self),
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "split": dataset.split,
            "test_split": test.split,
            "images": images,
            "clients": clients,
            "learning_rate": rate,
        }
        about = {name: value for name, value in config.items() if name not in _FREE}
        if out is not None and folder.is_unfinished(out):
            folder.refuse_other(out, config, free=_FREE)
        first = federation.prepare(
            model=self.model,
            dataset=dataset,
            test=test,
            num_rounds=self.rounds,
            partition=self.partition,
            num_clients=clients,
            images=images,
            batch_size=self.batch_size,
            num_steps=self.num_steps,
            num_epochs=self.local_epochs,
            learning_rate=rate if isinstance(rate, float) else jax.numpy.asarray(rate),
            schedule=self.schedule,
            scheme=self.scheme,
            clients_per_round=self.clients_per_round,
            defense=self.defense,
            defended=self.defended,
            normalise=self.normalise,
            seed=self.seed,
            devices=devices,
            say=None if self.quiet else _say,
        )
        all_of_them = [first, *(first.again(self.seed + i) for i in range(1, self.seeds))]
        # Traced before a folder is made: what the model or the defense refuses comes out here.
        jax.eval_shape(first.rounds.step, first.key, first.rounds.init(first.params), first.population)
        spent = self._spent(work, min((one.population.sizes for one in all_of_them), key=min))
        claimed = folder.claim(out, "train")
        config["out"] = str(claimed)
        command = flags.command("train", self, free=_FREE)
        return functools.partial(
            running.work, all_of_them, record, config, about=about, command=command, out=claimed, spent=spent
        )

    def _check(self) -> tuple[int, Work]:
        """Refuses what is wrong whatever the data; returns how many clients there are, and what each does."""
        named = partitioning.parse(self.partition).num_clients
        clients = (named or federation.DEFAULT_NUM_CLIENTS) if self.clients is None else self.clients
        validate.integer_at_least("clients", clients, 1)
        for name in ("rounds", "every", "seeds", "batch_size"):
            validate.integer_at_least(name, getattr(self, name), 1)
        for name in ("images", "num_steps", "local_epochs", "clients_per_round"):
            if getattr(self, name) is not None:
                validate.integer_at_least(name, getattr(self, name), 1)
        if self.num_steps is not None and self.local_epochs is not None:
            raise ValueError(f"num_steps={self.num_steps}, local_epochs={self.local_epochs}: expected one of the two")
        if self.images is not None and clients > self.images:
            raise ValueError(f"clients={clients}: expected at most images={self.images}")
        validate.integer_at_least("seed", self.seed, 0)
        if self.seed + self.seeds - 1 > _LARGEST_SEED:
            raise ValueError(f"seed={self.seed}: expected <= {_LARGEST_SEED - self.seeds + 1}")
        for rate in self.learning_rate:
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"learning_rate={rate}: expected a finite number > 0")
        if not self.learning_rate:
            raise ValueError("learning_rate: none: expected one number, or one for each client")
        for name, table in (("nonfinite", NONFINITE), ("defended", DEFENDED)):
            lookup(name, getattr(self, name), dict.fromkeys(table))
        return clients, Work(self.batch_size, self.num_steps, self.local_epochs)

    def _pairs(self, clients: int) -> frozenset[tuple[int, int]]:
        """The pairs (round, client) of --record."""
        if self.record is None:
            return frozenset()
        try:
            if ":" not in self.record:
                pairs = [(0, client) for client in range(int(self.record))]
            else:
                pairs = [(int(number), int(client)) for number, client in map(_split, self.record.split(","))]
        except ValueError as error:
            expected = "expected a number, or pairs ROUND:CLIENT as in 0:3,5:3"
            raise ValueError(f"record={self.record!r}: {expected}") from error
        for number, client in pairs:
            if not (0 <= number < self.rounds and 0 <= client < clients):
                raise ValueError(
                    f"record={self.record!r}: round {number}, client {client}: expected rounds 0 to {self.rounds - 1} "
                    f"and clients 0 to {clients - 1}"
                )
        if not pairs:
            raise ValueError(f"record={self.record!r}: expected at least one client")
        return frozenset(pairs)

    def _spent(self, work: Work, sizes: tuple[int, ...]) -> privacy.Spent | None:
        if self.defended != "steps":
            return None
        return privacy.spent(
            defending.parse(self.defense),
            work,
            sizes=sizes,
            num_rounds=self.rounds,
            clients_per_round=self.clients_per_round,
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _split(pair: str) -> tuple[str, str]:
    number, colon, client = pair.partition(":")
    if not colon:
        raise ValueError(pair)
    return number, client
