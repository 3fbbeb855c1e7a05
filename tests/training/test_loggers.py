"""``train.logger``: TensorBoard, Weights & Biases and MLflow get what the CSV file has, without a network."""

import csv
import importlib.util
import json
import struct
from collections import defaultdict

import pytest

from dqdet.errors import DqdetError
from dqdet.training import loggers
from dqdet.training.engine import resume, train
from tiny import tiny


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def logged(run) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each metric in the CSV file."""
    found = defaultdict(list)
    for row in csv.DictReader((run / "logs/csv/version_0/metrics.csv").open()):
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                found[name].append((int(row["step"]), float(value)))
    return found


def records(content: bytes):
    """The records of a file in the log format of LevelDB, which follows seven bytes of W&B's own."""
    place, whole = 7, b""
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:  # the end of a block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def seen_by_wandb(run) -> list[dict[str, float]]:
    """The rows in the files that `wandb sync` would send, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for file in sorted((run / "logs/wandb").glob("offline-run-*/*.wandb")):
        for content in records(file.read_bytes()):
            record = Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.mark.parametrize("names", [[], ["csv"], ["tensorboard"]])
def test_the_csv_file_is_always_there(tmp_path, names):
    run = train(tiny(train__epochs=1, train__drop=[], train__logger=names), tmp_path / "run")
    assert logged(run)["val/AP"]
    assert (run / "logs/tensorboard").exists() == (names == ["tensorboard"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_said_before_the_data_is_opened(run, monkeypatch, tmp_path, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda package: None if package == name else found(package))
    line = f"error: train.logger={name} needs the package {name}: pip install 'dqdet[loggers]', or leave it out\n"
    for end in ("--dry-run",), ("--out", tmp_path / "run"):
        status, _, err = run("train", "deformable_detr_r50", "data.root=nowhere", f"train.logger=[csv,{name}]", *end)
        assert (status, err) == (1, line)
    assert not (tmp_path / "run").exists()


def test_mlflow_has_what_the_csv_file_has_when_resumed_too(tmp_path, offline):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'dqdet[loggers]'")
    from mlflow.tracking import MlflowClient

    options = {"train__logger": ["mlflow"], "train__pictures": 1, "train__drop": [], "train__epochs": 1}
    run = train(tiny(**options), tmp_path / "run")
    first = json.loads((run / "logs/runs.json").read_text())
    resume(run, ["train.epochs=2"])
    assert json.loads((run / "logs/runs.json").read_text()) == first
    client = MlflowClient(f"file:{run / 'logs/mlruns'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "dqdet"]
    (known,) = client.search_runs([experiment.experiment_id])
    assert known.info.run_id == first["mlflow"]
    assert known.info.status == "FINISHED"
    assert known.data.params["train/epochs"] == "1"
    assert [file.path for file in client.list_artifacts(first["mlflow"], "pictures")]
    for name in ("val/AP", "val/AP/person"):
        history = client.get_metric_history(first["mlflow"], name.replace("AP/", "AP."))
        assert [(one.step, pytest.approx(one.value)) for one in history] == logged(run)[name]
        assert len(history) == 2


def test_wandb_has_what_the_csv_file_has_when_resumed_too(tmp_path, offline):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'dqdet[loggers]'")
    options = {"train__logger": ["wandb"], "train__pictures": 1, "train__drop": [], "train__epochs": 1}
    run = train(tiny(**options), tmp_path / "run")
    first = json.loads((run / "logs/runs.json").read_text())
    resume(run, ["train.epochs=2"])
    assert json.loads((run / "logs/runs.json").read_text()) == first
    rows = seen_by_wandb(run)
    for name in ("val/AP", "val/AP/person"):
        values = [(row["trainer/global_step"], pytest.approx(row[name])) for row in rows if name in row]
        assert values == logged(run)[name]
        assert len(values) == 2
    assert any("val/pictures" in row or "val/pictures._type" in row for row in rows)
    assert {file.name.rpartition("-")[2] for file in (run / "logs/wandb").glob("offline-run-*")} == {first["wandb"]}


def test_a_logger_that_cannot_be_opened_is_one_line(tmp_path, offline, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'dqdet[loggers]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(DqdetError, match=r"^train.logger=mlflow: .*; set MLFLOW_TRACKING_URI") as error:
        train(tiny(train__logger=["mlflow"]), tmp_path / "run")
    assert "\n" not in str(error.value)
