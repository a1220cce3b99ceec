"""The networks of LPIPS as torchvision has them: their shapes, and forward passes in plain numpy."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

NETS = ["alex", "vgg", "squeeze"]
CHANNELS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
# The least side of an image that torch accepts.
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
FIRE = {3: 16, 4: 16, 6: 32, 7: 32, 9: 48, 10: 48, 11: 64, 12: 64}


def shapes(net):
    """The convolutions of torchvision's networks: name to (outputs, inputs, window)."""
    if net == "alex":
        return {f"features.{place}": shape for place, shape in ALEX.items()}
    if net == "vgg":
        inputs = (3, *VGG)
        return {f"features.{place}": (VGG[i], inputs[i], 3) for i, place in enumerate(VGG_PLACES)}
    found, inputs = {"features.0": (64, 3, 3)}, 64
    for place, squeezed in FIRE.items():
        found[f"features.{place}.squeeze"] = (squeezed, inputs, 1)
        found[f"features.{place}.expand1x1"] = (4 * squeezed, squeezed, 1)
        found[f"features.{place}.expand3x3"] = (4 * squeezed, squeezed, 3)
        inputs = 8 * squeezed
    return found


def pair(height=34, width=41, *, n=2, channels=3, seed=0):
    """Images and noisy ones."""
    generator = np.random.default_rng(seed)
    truth = generator.random((n, height, width, channels))
    x = np.clip(truth + generator.normal(0, 0.2, truth.shape), 0, 1)
    return truth.astype(np.float32), x.astype(np.float32)


# Of one image [channels, height, width] in float64, from torchvision's sources and the paper.


def convolved(x, state, name, stride=1, padding=0):
    weight, bias = (state[f"{name}.{leaf}"].astype(float) for leaf in ("weight", "bias"))
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.maximum(np.tensordot(weight, windows, ((1, 2, 3), (0, 3, 4))) + bias[:, None, None], 0)


def pooled(x, window, rounded=np.floor):
    counts = [int(rounded((size - window) / 2)) + 1 for size in x.shape[1:]]
    starts = [range(0, 2 * count, 2) for count in counts]
    return np.stack(
        [[x[:, i : i + window, j : j + window].max((1, 2)) for j in starts[1]] for i in starts[0]]
    ).transpose(2, 0, 1)


def alexnet(state, x):
    x = convolved(x, state, "features.0", stride=4, padding=2)
    yield x
    x = convolved(pooled(x, 3), state, "features.3", padding=2)
    yield x
    x = convolved(pooled(x, 3), state, "features.6", padding=1)
    yield x
    for place in (8, 10):
        x = convolved(x, state, f"features.{place}", padding=1)
        yield x


def vgg16(state, x):
    for place in VGG_PLACES:
        if place in (5, 10, 17, 24):
            yield x
            x = pooled(x, 2)
        x = convolved(x, state, f"features.{place}", padding=1)
    yield x


def squeezenet(state, x):
    x = convolved(x, state, "features.0", stride=2)
    yield x
    for place in FIRE:
        if place in (3, 6, 9):
            x = pooled(x, 3, np.ceil)
        x = convolved(x, state, f"features.{place}.squeeze")
        small, large = (convolved(x, state, f"features.{place}.expand{k}x{k}", padding=k // 2) for k in (1, 3))
        x = np.concatenate([small, large])
        if place not in (3, 6):
            yield x


REFERENCE = {"alex": alexnet, "vgg": vgg16, "squeeze": squeezenet}
