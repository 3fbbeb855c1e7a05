"""What is said about the speed of data must follow from what was timed."""

import re
import time

import pytest
import torch
from typer.testing import CliRunner

import own_data
from dqdet.cli import app
from dqdet.config import DataConfig, ScenesConfig
from dqdet.data.loader import collate
from dqdet.data.scenes.images import ScenesDataset
from dqdet.data.speed import Speed, measure


def test_workers_are_rounded_up_to_whole_processes():
    speed = Speed(reading=0.005, augmenting=0.004, collating=0.001)
    assert speed.rate == pytest.approx(100)
    assert [speed.workers(rate) for rate in (50, 99, 101, 950)] == [1, 1, 2, 10]


def test_each_part_is_timed_where_it_happens(monkeypatch):
    """By a clock that only reading, augmenting and collating move, each by its own."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    config = DataConfig(kind="scenes", scenes=ScenesConfig(size=48, train_images=8), resize=[32])
    dataset = ScenesDataset(config, "train")

    def slow(function, seconds):
        def called(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        return called

    dataset.read = slow(dataset.read, 0.25)
    dataset.transform = slow(dataset.transform, 0.5)
    monkeypatch.setattr("dqdet.data.speed.collate", slow(collate, 4.0))
    state = torch.get_rng_state()
    assert measure(dataset, images=5, batch=4) == Speed(reading=0.25, augmenting=0.5, collating=1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_command(shared):
    arguments = ["data", "benchmark", str(shared / "data/bccd"), "--images", "4", "--rate", "1000", "data.resize=[64]"]
    result = CliRunner().invoke(app, [*arguments, "train.batch=2", "data.workers=0"])
    assert result.exit_code == 0, result.output
    rates = dict(re.findall(r"(reading|augmenting|collating|together)\D+[\d.]+\D+(\d+)", result.output))
    assert set(rates) == {"reading", "augmenting", "collating", "together"}
    workers = int(re.search(r"takes 1000 images/s needs data.workers=(\d+)", result.output)[1])
    assert workers == pytest.approx(1000 / int(rates["together"]), abs=0.02 * workers + 1)


@pytest.mark.parametrize("kind", ["yolo", "webdataset"])
def test_command_finds_the_kind_by_the_files(kind, shared, tmp_path):
    root = own_data.write(tmp_path / "data", "coco" if kind == "webdataset" else kind, shared, images=4)
    if kind == "webdataset":
        convert = ["data", "convert", str(root), "--to", kind, "--out", str(tmp_path / "shards")]
        assert CliRunner().invoke(app, convert).exit_code == 0
        root = tmp_path / "shards"
    options = ["--images", "2", "data.resize=[64]", "train.batch=2"]
    result = CliRunner().invoke(app, ["data", "benchmark", str(root), *options])
    assert result.exit_code == 0, result.output
    assert "together" in result.output
