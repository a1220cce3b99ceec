import base64
import dataclasses
import html.parser
import io
import os

import numpy as np
import pytest
import rich.console
from PIL import Image

import jaxleak as jl
from jaxleak.experiments import defending, folder, words
from jaxleak.experiments.attack import picture, report, summary
from jaxleak.experiments.attack.evaluation import Evaluation
from jaxleak.experiments.attack.outcome import Outcome

HOSTILE = "</td><script>alert(1)</script>[red]$x_"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def made_up(batches=2, seeds=3, batch_size=1, shape=(12, 12, 3), class_names=("a", "b", "c"), **config):
    """An outcome of random numbers."""
    random = np.random.default_rng(0)
    lanes = (batches, seeds)
    x = random.random((*lanes, batch_size, *shape), np.float32)
    truths = jl.Batch(
        random.random((batches, batch_size, *shape), np.float32), random.integers(0, 3, (batches, batch_size))
    )
    mse, loss = random.random((*lanes, batch_size)), random.random(lanes)
    correct = mse > 0.5
    found = Evaluation(x, np.zeros(mse.shape, int), mse, 30 * mse, mse, correct, loss.argmin(1))
    trace = jl.Trace(random.random((*lanes, 5)), np.ones(lanes, int))
    config = {
        "attack": "idlg",
        "defense": "none",
        "informed": False,
        "model": "lenet",
        "data": "photos",
        "split": "test",
        "batch_size": batch_size,
        "seeds": seeds,
        "num_steps": 5,
        "labels": "idlg",
        "normalise": True,
        **config,
    }
    defenses = defending.described(defending.parse(config["defense"]))
    record = {
        "command": "jaxleak attack",
        "defenses": defenses,
        "date": "today",
        "device": "none",
        "commit": None,
        "versions": {"jax": "0"},
    }
    return Outcome(
        config=config,
        record=record,
        indices=np.arange(batches * batch_size).reshape(batches, batch_size),
        class_names=class_names,
        truths=truths,
        result=jl.Result(jl.Batch(x, found.y), loss, np.zeros(lanes, int), trace),
        evaluation=found,
        num_steps=5,
        seconds=1.0,
    )


class Page(html.parser.HTMLParser):
    """The elements of a page, which must be closed in the order in which they were opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(outcome):
    return Page(report.render(outcome, picture.reconstructions(outcome), picture.loss_curves(outcome)))


def test_page_is_whole_and_needs_no_network():
    page = page_of(made_up())
    assert ("html", {"lang": "en"}) in page.elements
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.elements)
    assert not any("http" in (value or "") for _, attributes in page.elements for value in attributes.values())
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 2
    for attributes in images:
        assert attributes["alt"]
        kind, content = attributes["src"].split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).width > 300


def test_folder_holds_every_file_once(tmp_path):
    report.leave(made_up(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folder.FILES)
    assert len(folder.read_results(tmp_path / folder.RESULTS)) == 6


@pytest.mark.parametrize("name", folder.FILES)
def test_full_disk_leaves_whole_files_only(name, tmp_path, monkeypatch):
    real = os.replace

    def replace(source, target):
        if os.path.basename(target) == name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=name):
        report.leave(made_up(), tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= set(folder.FILES) - {name}


def test_hostile_class_name_is_text():
    outcome = made_up(class_names=(HOSTILE,) * 3)
    page = page_of(outcome)
    assert HOSTILE in page.words
    assert not any(tag == "script" for tag, _ in page.elements)
    console = rich.console.Console(file=io.StringIO(), width=200)
    summary.show(outcome, console)
    assert HOSTILE in console.file.getvalue()


def test_page_says_what_was_measured():
    outcome = made_up(defense="clip", labels="known")
    text = " ".join(page_of(dataclasses.replace(outcome, num_steps=2)).words)
    best = [min(range(3), key=lambda seed: outcome.loss[batch, seed]) for batch in range(2)]
    psnr = [outcome.evaluation.psnr[batch, seed, 0] for batch, seed in enumerate(best)]
    low, median, high = np.quantile(psnr, (0.25, 0.5, 0.75))
    assert f"{median:.1f} ({low:.1f} to {high:.1f})" in text
    assert f"After 2 of 5 steps: Half of the images were rebuilt at {median:.1f} dB or better" in text
    assert "granted: the attacker is told the true labels" in text
    assert "clip max_norm=4.0; the attacker matches as if there were none" in text
    assert "6 lanes: 6 finished; 6 restarts; 2 steps in 1.0 s" in text


@pytest.mark.parametrize("labels", jl.labels.NAMES)
def test_every_way_to_labels_has_words(labels):
    text = " ".join(page_of(made_up(labels=labels, batches=1, seeds=1)).words)
    assert ("not granted" in text) == (labels != "known")


def test_what_is_not_finite_is_shown_as_missing():
    outcome = made_up(batches=1, seeds=1)
    lost = {name: np.full_like(outcome.evaluation.mse, np.nan) for name in ("mse", "psnr", "ssim")}
    outcome = dataclasses.replace(
        outcome,
        evaluation=outcome.evaluation._replace(x=outcome.evaluation.x * np.nan, **lost),
        result=outcome.result._replace(
            loss=np.full((1, 1), np.inf),
            status=np.full((1, 1), jl.Status.DIVERGED),
            trace=jl.Trace(np.full((1, 1, 5), np.nan), np.zeros((1, 1), int)),
        ),
    )
    text = " ".join(page_of(outcome).words)
    assert "The reconstructions are not finite numbers; " in text
    assert "nan" not in text
    assert "diverged" in text


@pytest.mark.parametrize(
    "sizes",
    [
        {"batches": 20, "shape": (8, 8, 1)},
        {"batches": 1, "seeds": 1},
        {"batches": 3, "seeds": 20, "batch_size": 3, "shape": (8, 12, 4)},
        {"class_names": ("日本語", "$a_b^", "a name\nof many lines")},
    ],
)
def test_pictures_of_all_sizes(sizes):
    outcome = made_up(**sizes)
    for content in (picture.reconstructions(outcome), picture.loss_curves(outcome)):
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert pixels.std() > 1
        assert pixels.shape[0] < 2000
        assert pixels.shape[1] < 2000


def test_seeds_are_ranked_by_loss_with_diverged_ones_last():
    outcome = made_up(batches=1, seeds=4)
    outcome = dataclasses.replace(
        outcome,
        result=outcome.result._replace(
            loss=np.array([[3.0, np.nan, 0.0, 1.0]]), status=np.array([[0, 0, jl.Status.DIVERGED, 0]])
        ),
    )
    assert picture._ranking(outcome, 0).tolist() == [3, 0, 1, 2]


def test_spread_counts_finite_numbers():
    assert summary.spread([1.0, 2.0, 3.0, np.nan, np.inf]) == (1.5, 2.0, 2.5)
    assert summary.spread([np.nan]) == (None, None, None)
    assert [words.number(value, ".1f") for value in (1.25, None, np.nan, np.inf)] == ["1.2", "-", "-", "-"]


def test_long_table_says_what_it_leaves_out():
    console = rich.console.Console(file=io.StringIO(), width=100)
    summary.show(made_up(batches=40, seeds=1), console)
    assert "the first 32 of 40 images; all are in results.jsonl" in console.file.getvalue()
