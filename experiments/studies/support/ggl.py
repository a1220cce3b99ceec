"""What studies of GGL against defenses share: settings, the same images under each defense, generators, metrics."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data
from jaxleak.experiments.studies import lrp_fig_2
from jaxleak.experiments.studies.support import generative, leakage, similarity, study

MNIST_GAN = "mnist_gan_mlp_generator.safetensors"
LRP = lrp_fig_2.DEFENSE
# The leak of an attacker who divides by the expected rate: no defense of its own.
HALVED = f"{LRP}, over its mean"


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      setting: run the settings that have this in their name.
      only: run the cells that have this in "defense, attacker".
      weights_dir: folder of published weights; what needs them is left out without it.
      generator: a file of a generator of 32 x 32 images of CIFAR-10; what needs it is left out without it.
      lpips_vgg: a .safetensors file of torchvision's vgg16; without it LPIPS by VGG is null.
      lpips_alex: a .safetensors file of torchvision's alexnet, likewise.
      lpips_linear_dir: folder of `lpips_v0.1_vgg_lin.safetensors` and `lpips_v0.1_alex_lin.safetensors`.
    """

    setting: str = ""
    only: str = ""
    weights_dir: pathlib.Path | None = None
    generator: pathlib.Path | None = None
    lpips_vgg: pathlib.Path | None = None
    lpips_alex: pathlib.Path | None = None
    lpips_linear_dir: pathlib.Path | None = None


class Setting(NamedTuple):
    """What is attacked, and how long.

    Attributes:
      data: the name of a data set.
      model: a name of `jaxleak.models`.
      generator: "published", that of MNIST; "trained", the file of `--generator`; or "untrained".
      settings: of the model.
      images: each the batch of a client.
      num_steps: generations.
      population_size: of a generation.
    """

    data: str
    model: str
    generator: str
    settings: Mapping[str, Any] = {}
    images: int = 16
    num_steps: int = 800
    population_size: int = 50


class Given(NamedTuple):
    """A setting with all that its cells share.

    Attributes:
      setting: of the study.
      clients: the same images under each defense.
      generator: what GGL searches the codes of.
    """

    setting: Setting
    clients: leakage.Clients
    generator: generative.Named


def chosen(settings: Mapping[str, Setting], options: Options) -> list[str]:
    """The settings that are asked for and have the files that they need.

    Raises:
      ValueError: none is left.
    """
    files = {"published": options.weights_dir, generative.TRAINED: options.generator}
    found = [
        name
        for name, setting in settings.items()
        if options.setting in name and files.get(setting.generator, name) is not None
    ]
    if not found:
        raise ValueError(
            f"setting={options.setting!r}, weights_dir={options.weights_dir}, generator={options.generator}: nothing "
            f"is left: expected a part of one of {'; '.join(settings)}, and the files that it needs"
        )
    return found


def prepare(setting: Setting, texts: Iterable[str], options: Options) -> Given:
    """Prepares what leaks in a setting under defenses, no defense and LRP among them, and LRP divided by its mean."""
    dataset = data.load(setting.data, options.data_dir)
    found = leakage.clients(
        dict.fromkeys(("none", LRP, *texts)),
        model=setting.model,
        dataset=dataset,
        images=setting.images,
        normalise=False,
        model_settings=setting.settings,
    )
    leak = found.leaks[LRP]
    halved = dataclasses.replace(leak, update=jax.tree.map(lambda leaf: leaf / lrp_fig_2.SCALE, leak.update))
    clients = found._replace(leaks={**found.leaks, HALVED: halved})
    return Given(setting, clients, _generator(setting, dataset.shape, options))


def _generator(setting: Setting, shape: tuple[int, ...], options: Options) -> generative.Named:
    if setting.generator == "published":
        assert options.weights_dir is not None
        network = models.load_mnist_gan(options.weights_dir / MNIST_GAN)
        return generative.Named(network, generative.TRAINED, f"published, {MNIST_GAN}")
    height, width, channels = shape
    target = generative.Target(setting.data, (height, width, channels), setting.model, width=2)
    found = generative.generator(setting.generator, target, options.generator)
    assert found is not None
    return found


def measures(given: Given, options: Options) -> similarity.Measures:
    """The metrics of the LRP paper's Table 3, and SSIM."""
    scenario = given.clients.scenario
    represent = jl.metrics.representation(scenario.observe.loss_fn, scenario.params)
    perceptual = lpips(given, options)
    return similarity.Measures(
        {
            "mse": jl.metrics.mse,
            "psnr": jl.metrics.psnr,
            "ssim": jl.metrics.ssim,
            "mse_r": functools.partial(jl.metrics.mse_r, represent),
            **perceptual.of,
        },
        perceptual.missing,
    )


def lpips(given: Given, options: Options) -> similarity.Measures:
    """LPIPS by VGG and by AlexNet, where there are weights and images are large enough."""
    side = min(given.clients.scenario.dataset.shape[:2])
    return similarity.lpips({"vgg": options.lpips_vgg, "alex": options.lpips_alex}, options.lpips_linear_dir, side)


def norm(leak: jl.Leak) -> float:
    """The median norm of what leaked."""
    leaves = [np.square(np.asarray(leaf, float)) for leaf in jax.tree.leaves(leak.update)]
    norms = np.sqrt(sum(np.sum(leaf, tuple(range(1, leaf.ndim))) for leaf in leaves))
    return similarity.significant(np.median(norms))
