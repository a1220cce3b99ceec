"""CIFAR-shaped views of ten real photographs that lie inside the scikit-image package: no download.

Image i of a split shows photograph i % 10: a square crop at a place, of a size and mirrored as (split, i) alone decide,
shrunk to 32x32 pixels. The first ten images of the test split are the ten photographs' whole centre squares.
"""

import functools
import importlib.resources

import numpy as np
from PIL import Image

CLASS_NAMES = (
    "astronaut",
    "cat",
    "coffee",
    "rocket",
    "motorcycle",
    "galaxies",
    "retina",
    "tissue",
    "cameraman",
    "coins",
)
SIZES = {"train": 1000, "test": 200}
SIDE = 32

# Per channel, over the 1,000 training views.
MEAN = (0.4877, 0.3653, 0.3267)
STDDEV = (0.2866, 0.2307, 0.2303)

_FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
    "camera.png",
    "coins.png",
)
# Of the shorter side. Below 1, so that no crop is by chance the whole square, which only the test split shows.
_CROP = (0.45, 0.98)


def view(split: str, index: int) -> np.ndarray:
    """Image `index` of a split, uint8 [32, 32, 3]; its class is `index % 10`."""
    photograph = _photograph(index % len(_FILES))
    width, height = photograph.size
    shorter = min(width, height)
    if split == "test" and index < len(_FILES):
        side, left, top, mirrored = shorter, (width - shorter) // 2, (height - shorter) // 2, False
    else:
        random = np.random.default_rng([list(SIZES).index(split), index])
        side = round(shorter * random.uniform(*_CROP))
        left, top = random.integers(width - side + 1), random.integers(height - side + 1)
        mirrored = random.random() < 0.5
    box = (left, top, left + side, top + side)
    pixels = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
    return pixels[:, ::-1] if mirrored else pixels


@functools.cache
def _photograph(photo: int) -> Image.Image:
    resource = importlib.resources.files("skimage").joinpath("data", _FILES[photo])
    with resource.open("rb") as file, Image.open(file) as image:
        return image.convert("RGB")
