import io
import logging
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxleak.experiments import data
from jaxleak.experiments.data import photos

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def pixels_of(index, side=6):
    return np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)


def examples(count, **changed):
    return [{"image": png(pixels_of(i)), "label": i % 3} | changed for i in range(count)]


def prepare(data_dir, name="tiny", splits=None, version="1.0.0", image_type=None, **features):
    """Writes a data set as tfds itself does; TensorFlow is not needed for images that are already encoded."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    tfds.disable_progress_bar()
    if not features:
        image = tfds.features.Image(shape=(None, None, 3), dtype=image_type or np.uint8)
        features = {"image": image, "label": tfds.features.ClassLabel(names=["x", "y", "z"])}
    if splits is None:
        splits = {"train": examples(7), "test": examples(5)}

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    methods = {
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda self, _: {split: enumerate(items) for split, items in splits.items()},
        "_generate_examples": lambda self: None,
        "name": name,
        "__module__": "__main__",  # of another module, tfds looks for a package, with importlib_resources
    }
    with registered.skip_registration():
        builder = type("Tiny", (tfds.core.GeneratorBasedBuilder,), methods)(
            data_dir=data_dir, file_format="array_record"
        )
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data set tiny in two versions, of which the newer one has more training images."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder)
    prepare(folder, version="1.10.0", splits={"train": examples(8), "test": examples(5)})
    prepare(folder, version="1.9.0", splits={"train": examples(9), "test": examples(5)})
    return folder


@pytest.mark.parametrize(
    ("name", "split", "size", "shape"),
    [
        ("photos", None, 200, (32, 32, 3)),
        ("photos", "train", 1000, (32, 32, 3)),
        ("digits", None, 360, (8, 8, 1)),
        ("digits", "train", 1437, (8, 8, 1)),
    ],
)
def test_embedded_data(name, split, size, shape):
    dataset = data.load(name, split=split)
    assert (dataset.name, dataset.split) == (name, split or "test")
    assert (len(dataset), dataset.shape, dataset.num_classes) == (size, shape, 10)
    assert len(dataset.class_names) == 10
    x, y = dataset.take([0, 5, size - 1])
    assert (x.shape, x.dtype, y.dtype) == ((3, *shape), np.float32, np.int32)
    assert x.min() >= 0
    assert 0.3 < x.max() <= 1
    assert y.tolist() == [dataset.label(i) for i in [0, 5, size - 1]]


def test_names_are_the_embedded_ones():
    for name in data.NAMES:
        assert data.load(name).name == name


def test_digits_are_split_in_order():
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    for split, rows in [("train", slice(1437)), ("test", slice(1437, None))]:
        x, y = data.load("digits", split=split).take(range(360))
        np.testing.assert_array_equal(x[..., 0] * 16, digits.images[rows][:360])
        np.testing.assert_array_equal(y, digits.target[rows][:360])


def test_first_photos_are_ten_different_centre_squares():
    dataset = data.load("photos")
    x, y = dataset.take(range(10))
    assert y.tolist() == list(range(10))
    import skimage.data

    for row, photograph in [(0, skimage.data.astronaut()), (8, skimage.data.camera()[..., None])]:
        blocks = (photograph / 255).reshape(32, 16, 32, 16, -1).mean((1, 3))
        assert np.abs(x[row] - blocks).mean() < 0.03
    assert len({image.tobytes() for image in x}) == 10


def test_photos_are_deterministic_and_their_splits_disjoint():
    test, train = data.load("photos", split="test"), data.load("photos", split="train")
    x, _ = test.take(range(200))
    np.testing.assert_array_equal(test.take([17, 3])[0], x[[17, 3]])
    seen = {image.tobytes() for image in x}
    assert len(seen) == 200
    assert not any(image.tobytes() in seen for image in train.take(range(1000))[0])


@pytest.mark.parametrize("name", data.NAMES)
def test_embedded_statistics_are_those_of_the_training_images(name):
    dataset = data.load(name, split="train")
    x, _ = dataset.take(range(len(dataset)))
    np.testing.assert_allclose(dataset.mean, x.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(dataset.stddev, x.std((0, 1, 2)), atol=1e-3)
    assert data.load(name).mean == dataset.mean


def test_every_photograph_is_in_the_package():
    assert {photos.view("test", index).dtype for index in range(10)} == {np.dtype(np.uint8)}


def test_prepared_data(folder, caplog):
    dataset = data.load("tiny:1.0.0", folder)
    assert (dataset.name, dataset.split, len(dataset)) == ("tiny:1.0.0", "test", 5)
    assert (dataset.shape, dataset.num_classes, dataset.class_names) == ((6, 6, 3), 3, ("x", "y", "z"))
    x, y = dataset.take(range(5))
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    written = {pixels_of(i).tobytes(): i % 3 for i in range(5)}
    read = {np.round(image * 255).astype(np.uint8).tobytes(): int(label) for image, label in zip(x, y, strict=True)}
    assert read == written
    assert [dataset.label(i) for i in range(5)] == y.tolist()
    np.testing.assert_allclose(dataset.mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.stddev, x.std((0, 1, 2)), rtol=1e-5)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert dataset.take([])[0].shape == (0, 6, 6, 3)


def test_the_newest_version_and_parts_of_splits(folder):
    assert len(data.load("tiny", str(folder), "train")) == 8
    assert len(data.load("tiny/1.9.0", folder, "train")) == 9
    assert len(data.load("tiny", folder, "train[:3] + test")) == 8


def test_a_data_set_with_a_config(tmp_path):
    path = prepare(tmp_path / "written")
    shutil.copytree(path, tmp_path / "tiny" / "small" / "1.0.0")
    for name in ["tiny/small", "tiny/small:1.0.0", "tiny/small/1.0.0"]:
        assert len(data.load(name, tmp_path)) == 5


def test_default_split(tmp_path):
    for name, splits, expected in [
        ("a", ["train", "validation"], "validation"),
        ("b", ["pool"], "pool"),
        ("c", ["train", "test", "validation"], "test"),
    ]:
        prepare(tmp_path, name, {split: examples(2) for split in splits})
        assert data.load(name, tmp_path).split == expected
    prepare(tmp_path, "d", {"one": examples(2), "two": examples(2)})
    with pytest.raises(ValueError, match=r"^d has neither a split test nor validation: choose one of one, two$"):
        data.load("d", tmp_path)


def test_constant_images_have_a_stddev_above_zero(tmp_path):
    prepare(tmp_path, splits={"test": examples(1, image=png(np.zeros((2, 2, 3), np.uint8)))})
    assert data.load("tiny", tmp_path).stddev == (1 / 255,) * 3


def test_published_statistics_need_as_many_channels(tmp_path):
    prepare(tmp_path, "mnist", {"test": examples(2)})
    assert len(data.load("mnist", tmp_path).mean) == 3


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tyni", None, r"unknown data 'tyni' in .*: known are tiny$"),
        ("tiny:2.0.0", None, r"unknown version of tiny '2\.0\.0': known are 1\.0\.0, 1\.10\.0, 1\.9\.0$"),
        ("tiny", "tset", r"unknown split of tiny 'tset': known are test, train$"),
        ("tiny", "test[x]", r"1\.10\.0: cannot open split 'test\[x\]': .*"),
        ("photos", "tests", r"unknown split of photos 'tests': known are test, train$"),
        ("digits", "all", r"unknown split of digits 'all': known are train, test$"),
    ],
)
def test_wrong_names_are_refused(folder, name, split, message):
    with pytest.raises(ValueError, match=message) as error:
        data.load(name, folder, split)
    assert "\n" not in str(error.value)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data 'foto': embedded are photos, digits; any other needs data_dir"):
        data.load("foto")
    with pytest.raises(ValueError, match=r"data_dir='.*nowhere': expected a folder"):
        data.load("tiny", tmp_path / "nowhere")
    (tmp_path / "tiny" / "incomplete.1.0.0").mkdir(parents=True)
    (tmp_path / "tiny" / "incomplete.1.0.0" / "dataset_info.json").touch()
    with pytest.raises(ValueError, match=r"holds no data set: expected NAME/VERSION/dataset_info\.json in it"):
        data.load("tiny", tmp_path)


@pytest.mark.parametrize("indices", [[5], [-1], [0, 99]])
def test_indices_out_of_range_are_refused(folder, indices):
    with pytest.raises(ValueError, match=rf"index {indices[-1]}: expected 0\.\.4, split 'test' of tiny"):
        data.load("tiny", folder).take(indices)


@pytest.mark.parametrize("indices", [[0.5], [[0, 1]], 3, [True]])
def test_other_indices_are_refused(indices):
    with pytest.raises(ValueError, match=r"indices have shape .* and dtype .*: expected integers of shape \[n\]"):
        data.load("digits").take(indices)


def test_images_of_differing_sizes_are_refused(tmp_path):
    prepare(tmp_path, splits={"test": [{"image": png(pixels_of(i, 4 + i)), "label": 0} for i in range(2)]})
    with pytest.raises(ValueError, match=r"tiny: image 1 has shape .*, image 0 has shape .*: expected images of one"):
        data.load("tiny", tmp_path).take([0, 1])


def test_unlabelled_images_are_refused(tmp_path):
    prepare(tmp_path, splits={"test": examples(2, label=-1)})
    dataset = data.load("tiny", tmp_path)
    for read in [lambda: dataset.take([1]), lambda: dataset.label(1)]:
        with pytest.raises(ValueError, match=r"tiny: image 1 of split 'test' has label -1: expected 0\.\.2"):
            read()


def test_features_that_do_not_fit_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(6, 6, 3)), tfds.features.ClassLabel(num_classes=3)
    item = {"photo": png(pixels_of(0)), "class": 1, "other": 2}
    prepare(tmp_path, "good", {"test": [item]}, photo=image, **{"class": label}, other=np.int64)
    assert data.load("good", tmp_path).take([0])[1].tolist() == [1]
    prepare(tmp_path, "unlabelled", {"test": [item]}, photo=image, other=np.int64, **{"class": np.int64})
    with pytest.raises(ValueError, match=r"unlabelled has 0 features that can be the label: expected one, .*class"):
        data.load("unlabelled", tmp_path)
    prepare(tmp_path, "twice", {"test": [item]}, photo=image, other=label, **{"class": label})
    with pytest.raises(ValueError, match=r"twice has 2 features that can be the label: expected one, or one called"):
        data.load("twice", tmp_path)
    prepare(tmp_path, "deep", image_type=np.uint16)
    with pytest.raises(ValueError, match=r"deep: images are uint16: expected uint8"):
        data.load("deep", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "missing"])
def test_damaged_files_are_refused(tmp_path, damage):
    (file,) = prepare(tmp_path).glob("*-test.array_record*")
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"truncated": whole[: len(whole) * 2 // 3], "foreign": b"?" * 99_999, "empty": b""}[damage])
    expected = r"1\.0\.0: cannot read image 0 of split 'test' \(expected whole array_record files\): .+"
    with pytest.raises(ValueError, match=expected) as error:
        data.load("tiny", tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_images_are_refused(tmp_path):
    prepare(tmp_path, splits={"test": examples(1, image=io.BytesIO(b"no png"))})
    with pytest.raises(ValueError, match=r"cannot read image 0 of split 'test'"):
        data.load("tiny", tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_are_refused(tmp_path, file):
    path = prepare(tmp_path) / file
    path.write_text("{")
    with pytest.raises(ValueError, match=r"1\.0\.0: cannot be read as a data set of tensorflow_datasets: .+"):
        data.load("tiny", tmp_path)


def test_files_without_random_access_are_refused(tmp_path):
    path = prepare(tmp_path) / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"1\.0\.0: files are tfrecord: expected file_format='array_record'"):
        data.load("tiny", tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")
@pytest.mark.parametrize(
    ("name", "split", "size", "shape", "num_classes", "labels"),
    [
        ("mnist", "test", 10_000, (28, 28, 1), 10, ["2", "0", "4"]),
        ("cifar10", "test", 10_000, (32, 32, 3), 10, ["horse", "airplane", "frog"]),
        ("imagenet_sample", "test", 100, (256, 256, 3), 1000, ["candle", "Afghan hound", "tench"]),
        ("att_faces", "train", 400, (112, 92, 1), 40, ["s28", "s8", "s36"]),
        ("cifar100_pool", "pool", 10_000, (32, 32, 3), 100, ["kangaroo", "motorcycle", "porcupine"]),
    ],
)
def test_shared_data(name, split, size, shape, num_classes, labels):
    dataset = data.load(name, SHARED)
    assert (dataset.split, len(dataset), dataset.shape, dataset.num_classes) == (split, size, shape, num_classes)
    x, y = dataset.take(range(3))
    assert x.shape == (3, *shape)
    assert 0.5 < x.max() <= 1
    assert [dataset.class_names[label] for label in y] == labels
    assert len(dataset.mean) == len(dataset.stddev) == shape[-1]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100_pool"])
def test_published_statistics_are_those_of_the_images(name):
    dataset = data.load(name, SHARED)
    x, _ = dataset.take(range(0, len(dataset), 20))
    np.testing.assert_allclose(dataset.mean, x.mean((0, 1, 2)), atol=0.02)
    np.testing.assert_allclose(dataset.stddev, x.std((0, 1, 2)), atol=0.02)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")
def test_shared_names_are_listed_nearest_first():
    with pytest.raises(ValueError, match=re.escape(f"unknown data 'cifar' in {SHARED}: known are cifar10, ")):
        data.load("cifar", SHARED)
