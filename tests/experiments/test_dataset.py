import numpy as np
import pytest

from jaxleak.experiments import data


def labelled(labels, num_classes):
    """A data set of black images with these labels."""
    return data.Dataset(
        name="labelled",
        split="test",
        size=len(labels),
        shape=(2, 2, 1),
        num_classes=num_classes,
        class_names=tuple(map(str, range(num_classes))),
        read=lambda index: (np.zeros((2, 2, 1), np.float32), labels[index]),
        label=lambda index: labels[index],
    )


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_the_first_photos_come_in_order(seed, batch_size):
    indices = data.select(data.load("photos"), 4, batch_size, seed)
    np.testing.assert_array_equal(indices, np.arange(4 * batch_size).reshape(4, batch_size))
    assert indices.dtype == np.int64


@pytest.mark.parametrize("name", data.NAMES)
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (3, 4), (5, 10), (36, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_repeat_no_image_and_no_label(name, count, batch_size, seed):
    dataset = data.load(name)
    indices = data.select(dataset, count, batch_size, seed)
    assert indices.shape == (count, batch_size)
    assert len(np.unique(indices)) == indices.size
    for row in indices:
        assert len({dataset.label(i) for i in row.tolist()}) == batch_size


def test_seeds_choose_and_repeat():
    dataset = data.load("digits")
    np.testing.assert_array_equal(data.select(dataset, 4, 3, 1), data.select(dataset, 4, 3, 1))
    assert (data.select(dataset, 4, 3, 1) != data.select(dataset, 4, 3, 2)).any()


def test_more_batches_only_append():
    dataset = data.load("digits")
    np.testing.assert_array_equal(data.select(dataset, 9, 5, 3)[:4], data.select(dataset, 4, 5, 3))


def test_a_label_is_passed_over_and_used_later():
    np.testing.assert_array_equal(data.select(labelled([0, 0, 0, 1, 1, 2], 3), 2, 2), [[0, 3], [1, 4]])


def test_the_whole_data_set_is_dealt_out_by_label():
    labels = [0, 1, 0, 1, 2, 3, 2, 3, 3, 2, 4, 4]
    for batch_size in [2, 3, 4]:
        indices = data.select(labelled(labels, 5), len(labels) // batch_size, batch_size)
        assert sorted(indices.ravel()) == list(range(len(labels)))
        assert all(len({labels[i] for i in row}) == batch_size for row in indices)


def test_stranded_batches_are_dealt_out_again():
    labels = [0, 1, 2, 2, 0, 2]
    indices = data.select(labelled(labels, 3), 3, 2)
    assert sorted(indices.ravel()) == list(range(6))
    assert all(labels[first] != labels[second] for first, second in indices)


def test_batches_larger_than_the_classes_are_even():
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 1]
    (row,) = data.select(labelled(labels, 2), 1, 6)
    assert sorted(labels[i] for i in row) == [0, 0, 0, 1, 1, 1]
    (row,) = data.select(labelled(labels, 2), 1, 9)
    assert sorted(row) == list(range(9))


def test_only_the_labels_needed_are_read():
    def label(index):
        assert index < 5
        return index

    dataset = labelled(list(range(100)), 100)
    object.__setattr__(dataset, "label", label)
    assert data.select(dataset, 5, 1).tolist() == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), r"count=0: expected >= 1"),
        ((1, -1), r"batch_size=-1: expected >= 1"),
        ((1, 1, -2), r"seed=-2: expected >= 0"),
        (
            (51, 4),
            r"count=51 batches of batch_size=4 are 204 images: expected at most 200, split 'test' of photos",
        ),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.select(data.load("photos"), *arguments)
