"""Every block of code in the README and in docs/: what it names exists, and what it does works, at tiny sizes."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import shutil
import threading

import pytest

import dqdet
from documentation import PAGES, ROOT, ROOT_OPTIONS, SIZES, Block, blocks, check, prepare, shrunk
from dqdet.config import parse_overrides
from dqdet.training import evaluation, report

WRITE = report.write_report  # which is left out in other tests
PLACES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_SLOW = [place for place in PLACES if any(block.mark == "slow" for block in blocks(ROOT / place))]
RUN = ["deformable_detr_r50", "data.root=/data/coco", "queries.kind=static"]  # what pages call RUN


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page)], ids=str)
def test_all_that_a_block_names_exists(block):
    if block.mark == "needs":
        pytest.importorskip(block.reason, reason=f"pip install {block.reason}")
    check(block)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "dqdet trian scenes_tiny"),
        ("bash", "dqdet train scenes_tinny"),
        ("bash", "dqdet train scenes_tiny train.epoch=3"),
        ("bash", "dqdet train scenes_tiny train.epochs=many"),
        ("bash", "dqdet eval RUN --output DIR"),
        ("bash", "dqdet predict RUN photos/ --out DIR --precision fp8"),
        ("console", "$ dqdet data chek DATA\nan answer"),
        ("", "make everything"),
        ("", "python examples/demo.py --folder x"),
        ("", "pip install 'dqdet[everything]'"),
        ("", "curl --data-binary @street.jpg http://127.0.0.1:8000/find"),
        ("", "torchrun --nproc-per-node 8 -m dqdet tarin scenes_tiny"),
        ("", "rm -r runs"),
        ("python", "import dqdet\ndqdet.detect('street.jpg')"),
        ("python", "from dqdet.queries import MagicQueries"),
        ("python", "import dqdet\ndqdet.train('scenes_tiny', train={'epoch': 3})"),
        ("python", "Trainer(model=model, ...)"),
        ("ruby", "puts 1"),
    ],
)
def test_a_wrong_block_is_found(language, text):
    with pytest.raises(Exception, match=r".") as found:
        check(Block(ROOT / "README.md", 1, language, text, "", ""))
    assert not isinstance(found.value, IndexError | TypeError | KeyError)


def test_marks_have_their_reasons():
    for mark, reason in ("not run", ""), ("skipped", "no time"):
        with pytest.raises(AssertionError):
            check(Block(ROOT / "README.md", 1, "bash", "dqdet presets", mark, reason))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_outside_the_site_lead_to_files(name):
    """Those inside are checked when the site is built."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the pages speak of, which is copied for each of them."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def scratch(prepared, tmp_path, monkeypatch):
    """The working folder of one page, and the address where its files are served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("uvicorn.run", lambda *given, **options: None)
    monkeypatch.setattr(evaluation, "write_report", WRITE)
    monkeypatch.setattr(report, "report_page", lambda *given: "a page")  # without its figures, which take long
    folder = shutil.copytree(prepared, tmp_path / "scratch")
    monkeypatch.chdir(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()


@pytest.fixture
def run_page(scratch, run, monkeypatch):
    """Runs blocks of a page after each other: commands, and Python with the names of the blocks before."""
    folder, address = scratch
    train = dqdet.train

    def train_small(name, **given):
        options = parse_overrides({key: given.pop(key) for key in ROOT_OPTIONS if key in given})
        return train(name, **given, **options | SIZES)

    def local(text: str) -> str:
        return text.replace("/data/", f"{folder}/data/").replace("https://example.org/", address)

    def command(words: list[str], block: Block | str) -> None:
        words = [local(word) for word in shrunk(words)]
        if "DIR" in words:  # a folder of the reader's choice, another one each time
            shutil.rmtree(folder / "DIR", ignore_errors=True)
        if isinstance(block, Block) and block.mark == "other data" and words[0] == "train":
            words.append("data.kind=scenes")
        status, _, err = run(*words)
        assert status == 0, f"{block}: dqdet {' '.join(words)}: {err}"

    def page(chosen: list[Block]) -> None:
        text = "".join(block.text for block in chosen)
        if "RUN" in text:
            command(["train", *RUN, "--out", "RUN"], "preparing RUN")
            command(["eval", "RUN"], "preparing RUN")
            shutil.copytree("RUN", "RUN_OR_CHECKPOINT")
        if "RUN model.onnx" in text:
            command(["export", "RUN", "--out", "model.onnx"], "preparing model.onnx")
        names: dict[str, object] = {}
        for block in chosen:
            if block.language == "python":
                with monkeypatch.context() as patch:
                    patch.setattr(dqdet, "train", train_small)
                    exec(compile(local(block.text), str(block), "exec"), names)
            else:
                for words in block.commands():
                    if words[0] == "dqdet":
                        command(words[1:], block)

    return page


def runnable(place: str, slow: bool) -> list[Block]:
    unwanted = ("not run",) if slow else ("not run", "slow")
    chosen = [block for block in blocks(ROOT / place) if block.mark not in unwanted]
    return [block for block in chosen if block.mark != "needs" or importlib.util.find_spec(block.reason)]


@pytest.mark.parametrize("place", [place for place in PLACES if runnable(place, slow=False)])
def test_the_blocks_of_a_page_work(run_page, place):
    run_page(runnable(place, slow=False))


@pytest.mark.slow
@pytest.mark.parametrize("place", WITH_SLOW)
def test_the_blocks_of_a_page_work_with_the_slow_ones(run_page, place):
    run_page(runnable(place, slow=True))
