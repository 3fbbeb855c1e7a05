"""Trainings on shards: those on the same set in COCO's format, also after an interruption."""

import pytest
from recorder import Recorder

import own_data
from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.data.conversion import write_shards
from dqdet.errors import Interrupted
from dqdet.training.engine import resume, train
from tiny import tiny_family


@pytest.fixture(scope="module")
def roots(shared, tmp_path_factory) -> dict[str, str]:
    """Some blood cells as COCO has them, and in several shards."""
    root = own_data.write(tmp_path_factory.mktemp("few") / "coco", "coco", shared, images=12)
    splits = {split: open_dataset(DataConfig(root=str(root)), split) for split in ("train", "val")}
    write_shards(splits, root.parent / "shards", 100_000)
    return {"coco": str(root), "webdataset": str(root.parent / "shards")}


def config(roots, kind: str):
    small = {"data__resize": [64], "data__val_resize": 64, "data__max_size": 96, "data__crop": False}
    return tiny_family("deformable_detr_r50", **small, data__kind=kind, data__root=roots[kind], train__epochs=2)


@pytest.fixture(scope="module")
def of_coco(roots, tmp_path_factory) -> Recorder:
    train(config(roots, "coco"), tmp_path_factory.mktemp("of_coco"), [recorder := Recorder()])
    return recorder


def test_the_losses_are_those_of_cocos_format(roots, of_coco, tmp_path):
    train(config(roots, "webdataset"), tmp_path, [recorder := Recorder()])
    assert len(recorder.steps) == 6
    assert recorder.steps == of_coco.steps
    assert recorder.validations == of_coco.validations


def test_an_interrupted_training_goes_on_exactly(roots, of_coco, tmp_path):
    first, rest = Recorder(signal_after=4), Recorder()
    with pytest.raises(Interrupted):
        train(config(roots, "webdataset"), tmp_path, [first])
    resume(tmp_path, callbacks=[rest])
    assert first.steps + rest.steps == of_coco.steps
