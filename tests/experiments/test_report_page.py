"""The page of several runs: figures as in the rows, everything inside, readable without eyes, mouse or colour."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxleak.experiments import cli, folder
from jaxleak.experiments.report import building, pictures, reading
from jaxleak.experiments.sweep import study as studies

STUDY = """
attack = ["dlg_adam", "idlg"]
defense = ["none", "prune:fraction=0.9"]
images = 3
seeds = 2
num_steps = 3
snapshots = 2
data = ["digits"]
model = ["mlp"]
"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep, and a page of it."""
    root = tmp_path_factory.mktemp("runs")
    (root / "study.toml").write_text(STUDY)
    assert cli.main(["sweep", str(root / "study.toml"), "--out", str(root / "sweep"), "--quiet"]) == 0
    assert cli.main(["report", str(root / "sweep"), "--out", str(root / "page.html"), "--quiet"]) == 0
    return root


@pytest.fixture(scope="module")
def page(made):
    return (made / "page.html").read_text()


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag not in {"meta", "img", "br", "link", "input", "hr", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_every_picture_has_words_and_nothing_is_fetched(page):
    reader = parsed(page)
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 2 + 2 + 4 * 2
    for attrs in images:
        assert len(attrs["alt"]) > 5
        assert attrs["src"].startswith("data:image/")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert [tag for tag, _ in reader.tags if tag in ("link", "iframe", "object")] == []
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert len(set(reader.ids)) == len(reader.ids)


def test_figures_are_those_of_the_rows(made, page):
    rows = [json.loads(line) for line in (made / "sweep" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        psnr = np.array(row["psnr"])
        loss = np.array([[np.inf if value is None else value for value in leak] for leak in row["loss"]])
        best = psnr[np.arange(3), loss.argmin(1)].ravel()
        assert f">{np.median(best):.1f} <span" in page
        assert row["psnr_median"] == pytest.approx(np.median(best), abs=0.01)
    assert ">prune:<wbr>fraction=0.9</th>" in page
    assert "@article{zhao2020idlg" in page
    assert "@inproceedings{zhu2019deep" in page
    assert "@inproceedings{lin2018deep" in page


def test_a_table_of_the_sweep_has_a_line_for_each_cell(made):
    lines = (made / "sweep" / "table.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("attack,settings,num_steps,defense,informed,model")


def test_reading_gives_the_images_on_their_way(made):
    run = reading.read(made / "sweep")
    assert run.missing == 0
    for cell in run.cells:
        assert cell.steps == (0, 2, 3)
        assert cell.ways.shape == (3, 3, 8, 8, 1)
        assert cell.truth.shape == (3, 8, 8, 1)
        assert cell.loss_quartiles.shape == (3, 3)


def test_a_strip_shows_pixels_where_they_were():
    rows = np.zeros((2, 3, 8, 8, 1))
    rows[1, 2] = 1
    import io

    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(pictures.strip(rows))))
    assert image.shape == (16, 24)
    assert image[8:, 16:].min() > 250
    assert image[:8].max() < 5
    large = np.asarray(Image.open(io.BytesIO(pictures.strip(np.ones((1, 2, 256, 128, 3))))))
    assert large.shape == (64, 64, 3)


def test_runs_of_all_kinds_make_one_page_with_a_frontier(made, capsys):
    train = ["train", "--model", "mlp", "--data", "digits", "--rounds", "1", "--clients", "3", "--quiet"]
    for defense in ("none", "prune:fraction=0.9"):
        assert cli.main([*train, "--defense", defense, "--out", str(made / f"train-{defense[:5]}")]) == 0
    attack = ["attack", "--model", "mlp", "--data", "digits", "--images", "2", "--seeds", "2", "--num-steps", "2"]
    assert cli.main([*attack, "--out", str(made / "attack"), "--quiet"]) == 0
    runs = [str(made / name) for name in ("sweep", "attack", "train-none", "train-prune")]
    assert cli.main(["report", *runs, "--out", str(made / "all.html"), "--quiet"]) == 0
    text = (made / "all.html").read_text()
    parsed(text)
    assert 'id="frontier"' in text
    assert re.search(r'alt="none, mlp on digits: accuracy [\d.]+ %, SSIM', text)
    # Its own page is not overwritten.
    assert "4 runs, 5 cells" in text


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: shutil.rmtree(path), "is no folder"),
        (lambda path: (path / "study.json").unlink(), "holds neither config.json nor study.json"),
        (lambda path: (path / "study.json").write_text("{"), "study.json: not the file of a run"),
        (lambda path: (path / "study.json").write_text("[]"), "is damaged or not of this version"),
        (lambda path: (path / "results.jsonl").write_text("junk\n"), "results.jsonl:1: not a row of a store"),
        (lambda path: (path / "results.jsonl").unlink(), "no cell is finished"),
        (lambda path: next((path / "images").iterdir()).write_bytes(b"PK\x03\x04"), "expected arrays"),
    ],
)
def test_what_is_no_run_is_refused_by_name(made, tmp_path, capsys, damage, match):
    path = shutil.copytree(made / "sweep", tmp_path / "run")
    damage(path)
    assert cli.main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_pages_stay_below_their_size(monkeypatch, made):
    monkeypatch.setattr(building, "MOST_BYTES", 0)
    text = building.render([reading.read(made / "sweep")], "jaxleak report")
    assert "more would make this page too large" in text


def browse(path, *flags):
    profile = path.parent / "profile"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *flags]
    return subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)


_PROBE = """<script>
const input = document.getElementById("step"), seen = [];
for (const value of [0, 1, 2]) {
  input.value = value;
  input.dispatchEvent(new Event("input"));
  const figure = document.querySelector("figure");
  const strip = figure.querySelector(".strip img"), box = figure.querySelector(".strip");
  seen.push([figure.querySelector(".at").textContent, input.getAttribute("aria-valuetext"),
    Math.round((box.getBoundingClientRect().top - strip.getBoundingClientRect().top) / box.clientHeight)]);
}
input.focus();
const wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
const all = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
document.body.dataset.seen = JSON.stringify([seen, document.activeElement === input, wide, all]);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_slider_moves_and_the_console_is_silent(made, page, tmp_path, width):
    path = tmp_path / "page.html"
    # Once the pictures are there.
    probe = _PROBE.replace("<script>", '<script>addEventListener("load", () => {').replace("</script>", "});</script>")
    path.write_text(page.replace("</body>", probe))
    done = browse(
        path, "--dump-dom", "--enable-logging=stderr", f"--window-size={width},900", "--virtual-time-budget=5000"
    )
    assert "CONSOLE" not in done.stderr
    seen, focused, wide, all_there = json.loads(
        re.search(r'data-seen="([^"]*)"', done.stdout)[1].replace("&quot;", '"')
    )
    assert [one[0] for one in seen] == ["at the random start", "after 2 steps", "after 3 steps"]
    assert [one[1] for one in seen] == ["the random start", "part 1 of 2", "the result"]
    assert [one[2] for one in seen] == [0, 1, 2]
    assert (focused, wide, all_there) == (True, True, True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
def test_in_print_all_is_on_paper(made, tmp_path):
    path = pathlib.Path(shutil.copy(made / "page.html", tmp_path / "page.html"))
    browse(path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_study_and_a_folder_of_other_things_are_kept_apart(made, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["sweep", str(made / "study.toml"), "--out", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert studies.load(made / "study.toml").images == 3
    assert folder.REPORT == "report.html"
