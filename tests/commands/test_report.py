"""The page of an evaluation: its numbers are those of metrics.json, and a browser shows it without asking anybody."""

import json
import re
from html import unescape
from pathlib import Path

import PIL.Image
import pytest

from dqdet.metrics.scores import shown
from dqdet.training import engine, evaluation, report
from tiny import tiny

WRITE = report.write_report
CHROMIUM = [Path(f"/usr/bin/{name}") for name in ("chromium", "chromium-browser", "google-chrome")]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run whose evaluation wrote a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "write_report", WRITE)
        options = {"train__epochs": 6, "train__drop": [5.0], "train__lr": 2e-3, "data__scenes__val_images": 6}
        run = engine.train(tiny(**options), tmp_path_factory.mktemp("report") / "run")
        evaluation.evaluate(run)
    return run


def rows(page: str) -> dict[str, list[str]]:
    found = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)]
    return {unescape(cells[0]): [unescape(cell) for cell in cells[1:]] for cells in found if cells}


def test_its_numbers_are_those_of_the_metrics(evaluated):
    metrics = json.loads((evaluated / "eval" / "metrics.json").read_text())
    table = rows((evaluated / "eval" / "report.html").read_text())
    whole = [name for name in metrics if "/" not in name]
    assert [table[name] for name in whole] == [[shown(metrics[name])] for name in whole]
    classes = sorted({name.partition("/")[2] for name in metrics if "/" in name})
    assert len(classes) > 5
    thresholds = json.loads((evaluated / "thresholds.json").read_text())
    for name in classes:
        objects, ap, ap50, ap75, ar, threshold, *_ = table[name]
        assert [ap, ap50, ap75, ar] == [shown(metrics[f"{m}/{name}"]) for m in ("AP", "AP50", "AP75", "AR100")]
        assert threshold == f"{thresholds[name]:.3f}"
        assert int(objects) >= 0
    assert set(thresholds) == set(classes)
    assert {"classification", "localisation", "both", "duplicate", "background", "missed"} <= set(table)


def test_it_needs_no_other_file(evaluated):
    page = (evaluated / "eval" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<img") == page.count('src="data:image/') > 3


def test_a_browser_shows_it_and_no_request_leaves_the_page(evaluated):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = next((file for file in CHROMIUM if file.exists()), None)
    with playwright.sync_playwright() as started:
        if binary is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium; `playwright install chromium`, or that of the system")
        browser = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        page = browser.new_page()
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto((evaluated / "eval" / "report.html").as_uri())
        widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
        headings = page.locator("h2").all_inner_texts()
        wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        browser.close()
    assert len(widths) > 3
    assert min(widths) > 100
    assert headings == ["Metrics", "Classes", "Errors", "Images with most errors"]
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    assert not wide


def test_predict_draws_what_is_above_the_threshold_of_its_class(evaluated, run, tmp_path):
    PIL.Image.new("RGB", (64, 64), "teal").save(tmp_path / "x.png")
    options = [evaluated, tmp_path / "x.png", "--threshold", "auto"]
    file = evaluated / "thresholds.json"
    before = file.read_text()
    counts = {}
    try:
        for limit in (0.0, 1.0):
            file.write_text(json.dumps(dict.fromkeys(json.loads(before), limit)))
            status, out, err = run("predict", *options, "--out", tmp_path / str(limit))
            assert (status, err) == (0, "")
            counts[limit] = int(re.search(r"with (\d+) objects? above the threshold of their class", out).group(1))
        assert counts[1.0] == 0
        assert counts[0.0] > 0
        file.unlink()
        assert run("predict", *options, "--out", tmp_path / "none")[2] == (
            f"error: {file}: no such file; `dqdet eval {evaluated}` writes it\n"
        )
        file.write_text('{"car": 7}')
        assert "not thresholds in 0..1" in run("predict", *options, "--out", tmp_path / "none")[2]
    finally:
        file.write_text(before)
    wrong = run("predict", *options[:-1], "2", "--out", tmp_path / "none")[2]
    assert wrong == "error: --threshold 2: neither a score in 0..1 nor auto\n"
