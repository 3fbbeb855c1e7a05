"""`dqdet predict --engine ray`: the results of `predict`, shard by shard; with a stand-in for Ray, and with Ray."""

from __future__ import annotations

import functools
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import dqdet
from dqdet.errors import DqdetError, Interrupted
from dqdet.predict import on_ray
from dqdet.predict.on_ray import loading, predict_on_ray
from dqdet.predict.sources import predict
from dqdet.predict.stores import Job, jobs_of, read_job

RESULTS = ("results.json", "images.json")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Pictures of several shapes, one that is none, and what is no picture."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, (name, shape) in enumerate(
        {"1.png": (90, 120, 3), "deep/1.png": (120, 90, 3), "deep/er/2.png": (90, 120, 3), "x.png": (64, 64, 3)}.items()
    ):
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / name, quality=90 + number)
    (folder / "deep" / "bad.jpg").write_bytes(b"no picture")
    (folder / "readme.txt").write_text("no picture")
    return folder


class Killed(Exception):
    """Takes the place of the signal that ends a worker."""


class StandIn:
    """Ray Data, as far as it is used: an actor that looks at one row after the other, whose death Ray does not mind."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.done, self.loaded = stop_after, [], 0
        self.data = SimpleNamespace(from_items=self.from_items, ActorPoolStrategy=lambda size: size)

    def cluster_resources(self) -> dict:
        return {"CPU": 2.0}

    def nodes(self) -> list:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, num_cpus: int):
        assert num_cpus == 0  # it only counts
        return lambda of: SimpleNamespace(remote=lambda: self.as_actor(of()))

    def as_actor(self, one: on_ray.Tries) -> SimpleNamespace:
        return SimpleNamespace(begin=SimpleNamespace(remote=one.begin))

    def get(self, result: int) -> int:
        return result

    def from_items(self, rows: list[dict], override_num_blocks: int):
        assert override_num_blocks == len(rows)  # one shard a task
        self.rows = rows
        return self

    def map_batches(self, of, fn_constructor_args, batch_size, **options):
        assert (batch_size, options["compute"], options["num_cpus"]) == (1, 1, 2)
        self.actor = of(*fn_constructor_args)
        self.loaded += 1
        return self

    def iter_rows(self):
        for row in reversed(self.rows):  # in whatever order
            if len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            self.done.append(row["shard"])
            given = {name: np.array([value], dtype=object) for name, value in row.items()}
            found = None
            while found is None:
                with suppress(Killed):
                    found = self.actor(given)
            yield {name: values[0] for name, values in found.items()}


@pytest.fixture
def standing_in(monkeypatch):
    """Makes a stand-in take Ray's place."""

    def replace(stop_after: int | None = None) -> StandIn:
        ray = StandIn(stop_after)

        @contextmanager
        def cluster():
            yield ray

        monkeypatch.setattr(on_ray, "_cluster", cluster)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return replace


def read(folder: Path) -> list:
    return [json.loads((folder / name).read_text()) for name in RESULTS]


def expected_of(run: Path, photos: Path, out: Path) -> list:
    failures = predict(dqdet.load(run), [str(photos)], out)
    assert len(failures) == 1
    return read(out)


def same_results(found: list, expected: list) -> None:
    """Images together in a pass differ a little by rounding."""
    (results, images), (other_results, other_images) = found, expected
    assert images == other_images
    assert len(results) == len(other_results) > 0
    for one, other in zip(results, other_results, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose([one["score"], *one["bbox"]], [other["score"], *other["bbox"]], rtol=1e-4, atol=1e-3)


def test_the_results_are_those_of_predict_and_bad_images_are_listed(run, small_run, photos, tmp_path, standing_in):
    ray = standing_in()
    status, printed, err = run("predict", small_run, photos, "--engine", "ray", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "4 images in 1 shards, 0 of them done before" in printed
    assert printed.endswith("errors.json: 1 images could not be processed\n")
    same_results(read(tmp_path / "out"), expected_of(small_run, photos, tmp_path / "expected"))
    (error,) = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert error["file_name"] == "deep/bad.jpg"
    assert "cannot be read as an image" in error["error"]
    assert ray.loaded == 1


def test_shards_that_are_done_are_not_done_again(small_run, photos, tmp_path, standing_in):
    go = functools.partial(
        predict_on_ray, loading(dqdet.load, str(small_run), "fp32", False, {}), [str(photos)], tmp_path / "out", shard=2
    )
    first = standing_in(stop_after=2)
    with pytest.raises(Interrupted, match="2 of 3 shards are done, the same command does the others"):
        go()
    assert not (tmp_path / "out" / "results.json").exists()
    rest = standing_in()
    assert go() == 1
    assert sorted(first.done + rest.done) == [0, 1, 2]
    same_results(read(tmp_path / "out"), expected_of(small_run, photos, tmp_path / "expected"))
    again = standing_in()
    assert go() == 1
    assert again.loaded == 0


@pytest.fixture
def killing(monkeypatch):
    """Makes the worker that reads an image whose name matches die, every time or so often; returns the deaths."""

    def kill(matching: str, times: int | None = None) -> list[str]:
        deaths = []

        def read(job: Job) -> Image.Image:
            if matching in job.name and (times is None or len(deaths) < times):
                deaths.append(job.name)
                raise Killed
            return read_job(job)

        monkeypatch.setattr(on_ray, "read_job", read)
        return deaths

    return kill


def test_an_image_that_kills_its_workers_costs_no_other(small_run, photos, tmp_path, standing_in, killing):
    ray, deaths = standing_in(), killing("deep/1.png")
    model = loading(dqdet.load, str(small_run), "fp32", False, {})
    assert predict_on_ray(model, [str(photos)], tmp_path / "out", shard=2) == 2
    assert deaths == ["deep/1.png"] * 3  # with its shard, and twice alone
    errors = {one["file_name"]: one["error"] for one in json.loads((tmp_path / "out" / "errors.json").read_text())}
    assert sorted(errors) == ["deep/1.png", "deep/bad.jpg"]
    assert "every worker that looked at it was killed, most likely for lack of memory" in errors["deep/1.png"]
    others = [entry["file_name"] for entry in read(tmp_path / "out")[1]["images"]]
    assert others == ["1.png", "x.png", "deep/er/2.png"]
    assert ray.loaded == 2


def test_an_image_whose_worker_died_of_another_reason_is_looked_at_again(
    small_run, photos, tmp_path, standing_in, killing
):
    standing_in()
    killing("deep/1.png", times=2)
    model = loading(dqdet.load, str(small_run), "fp32", False, {})
    assert predict_on_ray(model, [str(photos)], tmp_path / "out", shard=2) == 1
    same_results(read(tmp_path / "out"), expected_of(small_run, photos, tmp_path / "expected"))


def test_it_ends_where_every_worker_is_killed(small_run, photos, tmp_path, standing_in, killing, monkeypatch):
    standing_in()
    deaths = killing("")
    model = loading(dqdet.load, str(small_run), "fp32", False, {})
    monkeypatch.setattr(on_ray, "ENOUGH", 2)
    with pytest.raises(DqdetError, match="all workers were killed, most likely for lack of memory"):
        predict_on_ray(model, [str(photos)], tmp_path / "out", shard=2)
    assert len(deaths) == 2 + 2 * 2  # of three shards, then of four images


@pytest.mark.parametrize("enough", [1, 10])
def test_killing_images_in_all_shards_that_are_left_cost_no_other(
    small_run, photos, tmp_path, standing_in, killing, monkeypatch, enough
):
    monkeypatch.setattr(on_ray, "ENOUGH", enough)
    standing_in()
    killing("1.png")  # 1.png and deep/1.png, in two shards
    model = loading(dqdet.load, str(small_run), "fp32", False, {})
    assert predict_on_ray(model, [str(photos)], tmp_path / "out", shard=2) == 3
    others = [entry["file_name"] for entry in read(tmp_path / "out")[1]["images"]]
    assert others == ["x.png", "deep/er/2.png"]


def test_a_worker_with_other_libraries_is_refused(small_run, photos, tmp_path, standing_in, monkeypatch):
    standing_in()
    model = loading(dqdet.load, str(small_run), "fp32", False, {})
    others = iter([{"torch": "2.11"}, {"torch": "2.12"}])  # first those of the command
    monkeypatch.setattr(on_ray, "versions", lambda: next(others))
    with pytest.raises(DqdetError, match=r"torch is 2\.12 on .*, but 2\.11 where the command runs; make it the same"):
        predict_on_ray(model, [str(photos)], tmp_path / "out")


def test_results_of_another_model_or_other_images_are_left_alone(small_run, photos, tmp_path, standing_in):
    ray = standing_in()
    model, out = loading(dqdet.load, str(small_run), "fp32", False, {}), tmp_path / "out"
    predict_on_ray(model, [str(photos)], out)
    before = read(out)
    os.utime(small_run / "model.safetensors", (0, 0))  # trained further
    others = [
        (loading(dqdet.load, str(small_run), "fp32", False, {}), photos),
        (loading(dqdet.load, str(small_run), "bf16", False, {}), photos),
        (model, photos / "deep"),
    ]
    for other, source in others:
        with pytest.raises(DqdetError, match="has results of other images, another model or other options"):
            predict_on_ray(other, [str(source)], out)
    assert (read(out), len(ray.done)) == (before, 1)
    predict_on_ray(model, [str(photos / "deep")], out, force=True)
    assert len(read(out)[1]["images"]) == 2
    predict(dqdet.load(small_run), [str(photos)], tmp_path / "plain")
    with pytest.raises(DqdetError, match="has results of other images"):
        predict_on_ray(model, [str(photos)], tmp_path / "plain")


def test_patterns_have_the_names_and_numbers_of_their_folder(photos, tmp_path):
    whole = jobs_of([str(photos)], tmp_path / "out", None)
    assert [job.name for job in whole] == ["1.png", "x.png", "deep/1.png", "deep/bad.jpg", "deep/er/2.png"]
    assert [job.image_id for job in whole] == [1, 2, 3, 4, 5]
    found = jobs_of([f"{photos}/**"], tmp_path / "out", None)
    assert {job.name for job in found} == {job.name for job in whole}


def test_stores_are_listed_and_read(photos, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'dqdet[ray]'")
    store = f"file://{photos}"
    names = [job.name for job in jobs_of([f"{store}/**"], tmp_path, None)]
    assert names == ["1.png", "deep/1.png", "deep/bad.jpg", "deep/er/2.png", "x.png"]
    assert [job.name for job in jobs_of([f"{store}/*.png"], tmp_path, None)] == ["1.png", "x.png"]
    (job,) = jobs_of([f"{store}/deep/**/2.png"], tmp_path, None)
    assert (job.place, job.name) == (f"{store}/deep/er/2.png", "er/2.png")
    assert np.array_equal(read_job(job), Image.open(photos / "deep" / "er" / "2.png"))
    with pytest.raises(DqdetError, match="cannot be read"):
        read_job(job._replace(place=f"{store}/none.png"))
    with pytest.raises(DqdetError, match="no images there"):
        jobs_of([f"{store}/*.gif"], tmp_path, None)
    with pytest.raises(DqdetError, match="cannot be listed"):
        jobs_of([f"{store}/none/**"], tmp_path, None)


def test_names_in_stores_may_have_any_characters(photos, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'dqdet[ray]'")
    folder = tmp_path / "store"
    folder.mkdir()
    names = ["a b.png", "a#1.png", "50%.png", "a%20c.png", "q?1.png", "ü.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    jobs = jobs_of([f"file://{folder}", f"file://{folder}/a b.png"], tmp_path / "out", None)
    assert sorted(job.name for job in jobs) == sorted(names)
    for job in jobs:
        assert read_job(job).getpixel((0, 0))[0] == names.index(job.name)


def test_an_image_that_is_given_twice_is_looked_at_once(tmp_path):
    place = "https://example.org/1.jpg"
    assert [job.place for job in jobs_of([place, place], tmp_path, None)] == [place]


def test_addresses_that_mean_the_same_file_are_two_images(tmp_path):
    places = ["https://example.org/a%20b.jpg", "https://example.org/a b.jpg"]
    assert [(job.place, job.image_id) for job in jobs_of(places, tmp_path, None)] == [(places[0], 1), (places[1], 2)]


def test_what_it_cannot_do_is_said(run, small_run, photos, tmp_path, monkeypatch):
    _, _, err = run("predict", small_run, photos, "--engine", "ray", "--threshold", "0.3", "--out", tmp_path / "out")
    assert "--threshold: not with --engine ray" in err
    monkeypatch.setitem(sys.modules, "ray", None)
    _, _, err = run("predict", small_run, photos, "--engine", "ray", "--out", tmp_path / "out")
    assert err == "error: `--engine ray` needs Ray Data: pip install 'dqdet[ray]'\n"


@pytest.mark.slow
def test_a_local_cluster_has_the_results_of_predict(small_run, photos, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install 'dqdet[ray]'")
    pytest.importorskip("pyarrow", reason="pip install 'dqdet[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        model = loading(dqdet.load, str(small_run), "fp32", False, {})
        pattern = f"{photos}/**/*.*g"
        assert predict_on_ray(model, [pattern], tmp_path / "out", shard=2) == 1
        left = tmp_path / "out" / "shards" / "000001.json"
        before = left.read_text()
        left.unlink()
        assert predict_on_ray(model, [pattern], tmp_path / "out", actors=2, shard=2) == 1
        assert left.read_text() == before
        predict(dqdet.load(small_run), [pattern], tmp_path / "expected")
        same_results(read(tmp_path / "out"), read(tmp_path / "expected"))
        gone = on_ray.Loading(functools.partial(dqdet.load, str(tmp_path / "gone")))
        with pytest.raises(DqdetError, match="gone"):
            predict_on_ray(gone, [f"{photos}/**"], tmp_path / "other")
    finally:
        ray.shutdown()
