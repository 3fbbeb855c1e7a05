"""Trainings that start from the weights of another model."""

import shutil

import pytest
import torch

import dqdet
from dqdet.config import DataConfig
from dqdet.data.coco import CocoDataset
from dqdet.data.scenes.images import ScenesDataset
from dqdet.errors import DqdetError
from dqdet.metrics.detection import DetectionMetric
from dqdet.models import create_model
from dqdet.runs.folder import load_config, load_folder, match_classes, save_folder
from dqdet.runs.transfer import start_from
from dqdet.types import ImageDetections
from tiny import PRESETS, TINY, tiny, tiny_family

ALL_PRESETS = [*PRESETS, "mask2former_r50_coco_instance", "video_mask2former_r50", "seqformer_r50"]
ANIMALS = ["cat", "dog", "bird"]


def make(config, seed):
    torch.manual_seed(seed)
    model = create_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def start(tmp_path):
    """Starts a new model from one with other options: (both as state dicts, the line)."""

    def started(preset, old, new, new_preset=None):
        old_config = tiny_family(preset, **{"classes": ANIMALS} | old)
        new_config = tiny_family(new_preset or preset, **{"classes": ANIMALS} | new)
        source, model = make(old_config, 0), make(new_config, 1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save_folder(tmp_path / "run", source, old_config, {})
        line = start_from(str(tmp_path / "run"), model, new_config)
        prefix = f"init={tmp_path / 'run'}: "
        assert line.startswith(prefix)
        assert "\n" not in line
        return source.state_dict(), before, model.state_dict(), line.removeprefix(prefix)

    return started


def assert_equal(found, expected, names):
    names = list(names)
    assert names
    for name in names:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_the_same_model_is_loaded_whole(start, preset):
    source, _, model, line = start(preset, {}, {})
    assert_equal(model, source, source)
    assert line == f"loaded {len(source)} of {len(source)} tensors; re-made nothing; ignored nothing"


@pytest.mark.parametrize("preset", ALL_PRESETS)
def test_classes_are_kept_by_name(start, preset):
    source, before, model, line = start(preset, {}, {"classes": ["fish", "dog", "cat", "horse"]})
    heads = [name for name in source if name.startswith(("class_head.", "proposal_class_head.", "denoising."))]
    assert ("denoising.labels" in heads) == (preset == "dino_r50")
    assert_equal(model, source, source.keys() - heads)
    for name in heads:
        assert torch.equal(model[name][1], source[name][1])
        assert torch.equal(model[name][2], source[name][0])
        for label in (0, 3):
            assert torch.equal(model[name][label], before[name][label])
        if len(source[name]) == 4:  # "no object"
            assert torch.equal(model[name][4], source[name][3])
    loaded = f"loaded {len(source) - len(heads)} of {len(source)} tensors"
    assert line == f"{loaded}; re-made class_head (with 2 of 4 classes known by name); ignored 1 of 3 classes"


def test_a_head_of_as_many_other_classes_is_not_mistaken_for_the_same(start):
    source, before, model, line = start("deformable_detr_r50", {}, {"classes": ["ship", "car", "bus"]})
    assert_equal(model, before, (name for name in source if name.startswith("class_head.")))
    assert "class_head (with 0 of 3 classes known by name); ignored 3 of 3 classes" in line


def test_names_that_are_not_unique_are_not_known(start):
    _, _, _, line = start("detr_r50", {"classes": ["N/A", "cat", "N/A"]}, {"classes": ["N/A", "cat"]})
    assert "with 1 of 2 classes known by name" in line


def test_the_head_that_scores_proposals_keeps_its_only_meaning(start):
    two_stage = {"model__refine": True, "model__two_stage": True, "queries__kind": "static"}
    source, _, model, _ = start("deformable_detr_r50", two_stage, two_stage)
    assert_equal(model, source, source)
    source, before, model, _ = start("deformable_detr_r50", two_stage, two_stage | {"classes": ["fish", "dog"]})
    for part in ("weight", "bias"):
        assert torch.equal(model[f"class_head.2.{part}"][0], source[f"class_head.2.{part}"][0])
        assert torch.equal(model[f"class_head.2.{part}"][1], before[f"class_head.2.{part}"][1])
        assert torch.equal(model[f"class_head.1.{part}"][1], source[f"class_head.1.{part}"][1])


def test_labels_of_denoising_queries_are_made_where_the_source_has_none(start):
    for classes in (ANIMALS, ["fish", "dog"]):
        old, new = {"queries__denoising": 0}, {"queries__denoising": 5, "classes": classes}
        _, before, model, line = start("dab_deformable_detr_r50", old, new)
        assert torch.equal(model["denoising.labels"], before["denoising.labels"])
        assert "re-made denoising.labels" in line or "re-made class_head" in line
        assert "denoising.labels" in line
    _, _, _, line = start("dab_deformable_detr_r50", {"queries__denoising": 5}, {})
    assert "ignored denoising.labels" in line


def test_static_queries_become_basic_ones(start):
    source, before, model, line = start("detr_r50", {"queries__kind": "static"}, {})
    table = source.pop("queries.table.position")
    assert torch.equal(model["queries.basic.position"], table.repeat_interleave(2, 0))
    assert_equal(model, source, source)
    assert_equal(model, before, (name for name in model if name.startswith("queries.coefficients.")))
    assert line.endswith("the queries 2 times; re-made queries.coefficients; ignored nothing")


def test_those_of_inference_become_basic_ones_where_the_groups_are_others(start):
    grouped = {"queries__kind": "grouped", "queries__basic": "groups", "queries__ratio": 3}
    source, _, model, line = start("detr_r50", grouped, {})
    table = source["queries.table.position"]
    assert torch.equal(model["queries.basic.position"], table.repeat_interleave(2, 0))
    assert line.endswith("the queries 2 times; re-made queries.coefficients; ignored nothing")


def test_queries_that_do_not_fit_are_made_anew(start):
    source, before, model, line = start("detr_r50", {"queries__count": 6}, {})
    assert_equal(model, before, (name for name in model if name.startswith("queries.")))
    assert_equal(model, source, (name for name in model if not name.startswith("queries.")))
    remade = "queries.basic, queries.coefficients"
    assert line.endswith(f"; re-made {remade}; ignored {remade}")
    _, _, _, line = start("detr_r50", {}, {"queries__kind": "static"})
    assert line.endswith(f"; re-made queries.table; ignored {remade}")
    _, _, _, line = start("detr_r50", {"queries__count": 6, "queries__kind": "static"}, {})
    assert line.endswith(f" tensors; re-made {remade}; ignored queries.table")


def test_coefficients_are_kept_when_basic_queries_train_in_another_way(start):
    source, _, model, line = start("detr_r50", {}, {"queries__basic": "one"})
    assert_equal(model, source, source)
    assert line.endswith("; re-made nothing; ignored nothing")


def test_coefficients_for_another_pooling_are_made_anew(start):
    source, before, model, line = start("detr_r50", {"queries__pool": "max"}, {})
    assert_equal(model, source, ["queries.basic.position"])
    assert_equal(model, before, ["queries.coefficients.0.weight", "queries.coefficients.2.bias"])
    assert line.endswith("; re-made queries.coefficients; ignored queries.coefficients")


def test_another_family_or_size_is_refused_with_what_it_looks_like(start):
    with pytest.raises(DqdetError) as caught:
        start("conditional_detr_r50", {}, {}, "smca_detr_r50")
    assert "run: looks like model.family=conditional_detr, model.hidden=32, model.heads=2" in str(caught.value)
    assert "the model to train differs in model.family=smca_detr; choose" in str(caught.value)
    with pytest.raises(
        DqdetError, match=r"\.decoder_layers=2.* in model\.decoder_layers=3, model\.backbone\.freeze=False; "
    ):
        start("detr_r50", {}, {"model__decoder_layers": 3, "model__backbone__freeze": False})
    with pytest.raises(DqdetError, match=r"\.refine=True.* differs in model\.refine=False; "):
        start("deformable_detr_r50_refine", {}, {}, "deformable_detr_r50")


def test_a_model_of_videos_starts_from_one_of_images(start):
    image, video = "mask2former_r50_coco_instance", "video_mask2former_r50"
    classes = {"classes": ["giant_panda", "dog", "cat"]}
    source, before, model, line = start(image, {"queries__kind": "static", "model__see_padding": True}, classes, video)
    for part in ("content", "position"):
        table = source.pop(f"queries.table.{part}")
        assert torch.equal(model[f"queries.basic.{part}"], table.repeat_interleave(2, 0))
    heads = ("class_head.weight", "class_head.bias")
    assert_equal(model, source, source.keys() - heads)
    for name in heads:
        expected = [before[name][0], source[name][1], source[name][0], source[name][3]]  # the last one is "no object"
        assert torch.equal(model[name], torch.stack(expected))
    assert "the queries 2 times; re-made queries.coefficients, class_head (with 2 of 3 classes known by name)" in line
    with pytest.raises(DqdetError, match=r"differs in model\.family=mask2former; "):
        start(video, {}, {}, image)


def test_frozen_norms_do_not_start_from_learned_ones(start):
    start("mask2former_r50_coco_instance", {}, {"model__backbone__freeze": True})
    with pytest.raises(DqdetError, match=r"differs in model\.backbone\.freeze=False; "):
        start("mask2former_r50_coco_instance", {}, {"model__backbone__freeze": False})


def test_an_option_without_parameters_is_refused_too(start):
    """Four heads have as many parameters as two."""
    with pytest.raises(DqdetError, match=r"differs in model\.heads=4"):
        start("detr_r50", {}, {"model__heads": 4})
    start("detr_r50", {"model__dropout": 0.0}, {"model__dropout": 0.5})


def test_a_training_starts_from_a_run(tmp_path, capsys):
    options = TINY | {"train.steps": 1}
    first = dqdet.train("scenes_tiny", out=tmp_path / "first", **options)
    capsys.readouterr()
    nearly = options | {"train.lr": 1e-30, "train.backbone_lr": 1e-30, "train.offsets_lr": 1e-30}
    second = dqdet.train("scenes_tiny", out=tmp_path / "second", init=str(first), **nearly)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(f"init={first}: loaded ")] == [lines[0]]
    old, new = load_folder(first)[0].state_dict(), load_folder(second)[0].state_dict()
    learned = [name for name, _ in load_folder(first)[0].named_parameters()]
    for name in learned:
        torch.testing.assert_close(new[name], old[name])
    assert load_config(second).init == str(first)

    shutil.rmtree(first)
    dqdet.train(resume=second, **{"train.steps": 2})  # needs it no more


def test_what_it_starts_from_must_exist(tmp_path):
    with pytest.raises(DqdetError, match="/nothing: no such folder or file"):
        dqdet.train("scenes_tiny", out=tmp_path, init="/nothing", **TINY)


# Models with more classes than the data.


def test_classes_are_matched_by_name():
    config = tiny(classes=["N/A", "cat", "N/A", "dog"])
    assert match_classes(config, ["dog", "cat"], [7, 3], "data") == [-1, 3, -1, 7]
    assert match_classes(config, config.classes, [0, 1, 2, 3], "data") == [0, 1, 2, 3]
    for found in (["cat", "horse"], ["cat", "N/A"], ["cat", "cat"]):
        with pytest.raises(DqdetError, match=r"data: its 2 classes are not the 4 of the model"):
            match_classes(config, found, [1, 2], "data")


def test_coco_with_91_outputs_is_measured_by_the_official_ids(shared):
    """Perfect detections by category id have an average precision of 1, whatever is found of unused ids."""
    from dqdet.weights import PUBLISHED

    data = CocoDataset(DataConfig(root=str(shared / "data" / "coco_real")), "val")
    config = tiny(**PUBLISHED["detr"].classes[91].options)
    ids = match_classes(config, data.classes, data.category_ids, "data")
    assert [i for i in ids if i != -1] == data.category_ids
    truth = data.ground_truth()
    metric = DetectionMetric(truth, ids)
    for image in data.image_ids:
        objects = [a for a in truth["annotations"] if a["image_id"] == image and not a["iscrowd"]]
        labels = torch.tensor([a["category_id"] for a in objects] + [12, 26], dtype=torch.int64)
        boxes = torch.tensor([a["bbox"] for a in objects] + [[0, 0, 50, 50]] * 2, dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        metric.update([image], [ImageDetections(torch.ones(len(labels)), labels, boxes)])
    assert metric.compute()["AP50"] > 0.99


def test_more_classes_do_not_change_what_is_found(tmp_path, monkeypatch):
    """A model and the same one with other outputs beside and in another order, evaluated on the same data."""
    config = tiny()
    data = ScenesDataset(config.data, "val", 0)
    config.classes, config.category_ids = data.classes, data.category_ids
    model = make(config, 0)
    more = config.model_copy(update={"classes": ["N/A", *reversed(data.classes), "N/A"], "category_ids": []})
    wider = create_model(more)
    state = model.state_dict()
    for name in state:
        if name.startswith("class_head."):
            never = state[name][:1] * 0 - (30 if name.endswith("bias") else 0)
            state[name] = torch.cat([never, state[name].flip(0), never])
    wider.load_state_dict(state)
    entries = []

    class Recorded(DetectionMetric):
        def _match(self, image_id, found):
            entries.extend(found)
            super()._match(image_id, found)

    monkeypatch.setattr("dqdet.training.task_metrics.DetectionMetric", Recorded)
    measured = []
    for name, (network, settings) in {"model": (model, config), "wider": (wider, more)}.items():
        save_folder(tmp_path / name, network, settings, {})
        entries.clear()
        dqdet.evaluate(tmp_path / name)
        known = [entry for entry in entries if entry["category_id"] > 0]
        measured.append(sorted((entry["image_id"], entry["category_id"], entry["score"]) for entry in known))
    expected, found = measured
    assert len(expected) == 4 * 5 * 8  # images, queries, classes
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
