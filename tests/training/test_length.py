"""What depends on the length of a training moves with it; what was set stays."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import Recorder

import dqdet
from dqdet.config import changes, from_yaml, override, preset_names, resolve, to_yaml, total_steps
from dqdet.errors import DqdetError
from dqdet.runs.folder import load_config
from dqdet.studies.small import detector
from dqdet.training.engine import resume, train
from dqdet.training.optimiser import learning_rate_factor
from tiny import TINY

# Three steps an epoch, with the length and the drops of the preset.
SMALL = {name: value for name, value in TINY.items() if name not in ("train.epochs", "train.drop", "train.drop_steps")}


def drop_shares(options, steps_per_epoch: int) -> list[float]:
    """At which shares of the training the learning rates fall, as they do."""
    end = total_steps(options, steps_per_epoch)
    factor = learning_rate_factor(options.model_copy(update={"warmup": 0}), steps_per_epoch)
    return [step / end for step in range(1, end) if factor(step) < 0.5 * factor(step - 1)]


def test_the_example_of_the_readme_drops():
    text = Path(__file__).parents[2].joinpath("README.md").read_text()
    preset, *options = re.search(r"^dqdet train (deformable_detr_r50 .*)$", text, re.M)[1].split()
    config = resolve(preset, options)
    assert (config.train.epochs, config.train.drop) == (12, [9.6])  # 40 of 50
    assert drop_shares(config.train, 100) == [0.8]


@pytest.mark.parametrize(
    ("preset", "options", "epochs", "steps", "drop", "drop_steps"),
    [
        ("deformable_detr_r50", {}, 50, None, [40], []),
        ("deformable_detr_r50", {"train.epochs": 50}, 50, None, [40], []),
        ("deformable_detr_r50", {"train.epochs": 100}, 100, None, [80], []),
        ("deformable_detr_r50", {"train.steps": 400}, None, 400, [], [320]),
        ("deformable_detr_r50", {"train.epochs": 12, "train.drop": [11]}, 12, None, [11], []),
        ("deformable_detr_r50", {"train.epochs": 12, "train.drop": []}, 12, None, [], []),
        ("deformable_detr_r50", {"train.steps": 400, "train.drop_steps": [7]}, None, 400, [], [7]),
        ("deformable_detr_r50", {"train.lr": 1.0}, 50, None, [40], []),
        ("deformable_detr_r50", {"train.steps": None}, 50, None, [40], []),
        ("detr_r50", {"train.epochs": 300, "train.drop": [200]}, 300, None, [200], []),
        ("seqformer_r50", {"train.epochs": 24}, 24, None, [8, 20], []),
        ("scenes_tiny", {"train.epochs": 6}, 6, None, [4.8], []),
        ("scenes_tiny", {"train.steps": 1}, None, 1, [], []),  # there is no step to drop after
        ("mask2former_r50_coco_instance", {}, None, 368_750, [], [327_778, 355_092]),
        ("mask2former_r50_coco_instance", {"train.steps": 36_875}, None, 36_875, [], [32_778, 35_509]),
        ("mask2former_r50_coco_instance", {"train.epochs": 100}, 100, None, [88.888949, 96.296136], []),
        ("mask2former_r50_coco_instance", {"train.epochs": 9, "train.drop": [8]}, 9, None, [8], []),
        ("mask2former_r50_cityscapes_instance", {"train.epochs": 9}, 9, None, [], []),
    ],
)
def test_drops_move_with_the_length_unless_they_are_set(preset, options, epochs, steps, drop, drop_steps):
    found = resolve(preset, options).train
    assert (found.epochs, found.steps, found.drop, found.drop_steps) == (epochs, steps, drop, drop_steps)


LENGTHS = {"train.epochs": st.integers(3, 40), "train.steps": st.integers(30, 300)}


@pytest.mark.parametrize("preset", preset_names())
@settings(max_examples=5)  # of each of many presets
@given(steps_per_epoch=st.integers(20, 30), unit=st.sampled_from(sorted(LENGTHS)), data=st.data())
def test_every_preset_keeps_the_shape_of_its_schedule(preset, steps_per_epoch, unit, data):
    """At the same shares of a training of any length, in either unit, to a step."""
    published = resolve(preset).train
    end = published.epochs or published.steps
    shares = [] if published.schedule == "poly" else [d / end for d in published.drop or published.drop_steps]
    config = resolve(preset, {unit: data.draw(LENGTHS[unit])})
    steps = total_steps(config.train, steps_per_epoch)
    assert drop_shares(config.train, steps_per_epoch) == pytest.approx(shares, abs=1 / steps)
    assert changes(config).keys() == {unit} or changes(config) == {}
    assert resolve(preset, changes(config)) == config
    assert from_yaml(to_yaml(config), "x") == config


def test_a_drop_that_was_set_is_a_change_of_its_own():
    config = resolve("deformable_detr_r50", {"train.epochs": 12, "train.drop": [40.0]})
    assert changes(config) == {"train.epochs": 12, "train.drop": [40.0]}
    assert resolve("deformable_detr_r50", changes(config)) == config


def test_lengths_add_up_over_overrides():
    twice = override(resolve("deformable_detr_r50", {"train.epochs": 12}), {"train.epochs": 25})
    assert twice.train == resolve("deformable_detr_r50", {"train.epochs": 25}).train


def test_a_training_without_a_length_is_refused():
    with pytest.raises(DqdetError, match=r"no length: set train\.epochs or train\.steps"):
        resolve("mask2former_r50_coco_instance", {"train.steps": None})


def test_steps_alone_are_a_length_that_goes_over_epochs(tmp_path):
    """Preset with one epoch and a drop after 0.8 of it; ten steps are more than three epochs here."""
    train(resolve("scenes_tiny", SMALL | {"train.steps": 10}), tmp_path, [recorder := Recorder()])
    assert [epoch for epoch, *_ in recorder.steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    rates = [rate for *_, rate in recorder.steps]
    assert rates == pytest.approx([5e-4] * 7 + [5e-5] * 3)  # the rate that is seen is that of the next step


def test_of_epochs_and_steps_what_comes_first_is_the_end(tmp_path):
    for given_steps, expected in ((99, 6), (4, 4)):
        options = SMALL | {"train.epochs": 2, "train.steps": given_steps}
        train(resolve("scenes_tiny", options), tmp_path / str(given_steps), [recorder := Recorder()])
        assert len(recorder.steps) == expected


def test_a_prolonged_training_has_the_rates_of_its_new_length(tmp_path, capsys):
    train(resolve("scenes_tiny", SMALL | {"train.epochs": 2}), tmp_path)
    assert load_config(tmp_path).train.drop == [1.6]
    capsys.readouterr()
    resume(tmp_path, ["train.epochs=5"], [recorder := Recorder()])
    assert "train.drop=[4.0] from now on, before it was [1.6]" in capsys.readouterr().err
    assert [rate for *_, rate in recorder.steps] == pytest.approx([5e-4] * 5 + [5e-5] * 4)


def test_a_prolonged_training_keeps_drops_that_were_set_and_says_so(tmp_path, capsys):
    train(resolve("scenes_tiny", SMALL | {"train.epochs": 2, "train.drop": [1.0]}), tmp_path)
    capsys.readouterr()
    resume(tmp_path, ["train.epochs=3"], [recorder := Recorder()])
    assert "train.drop=[1.0] stays as it was set" in capsys.readouterr().err
    assert [rate for *_, rate in recorder.steps] == pytest.approx([5e-5] * 3)
    resume(tmp_path, ["train.epochs=5", "train.drop=[4.0]"], [recorder := Recorder()])
    assert [rate for *_, rate in recorder.steps] == pytest.approx([5e-4] * 2 + [5e-5] * 4)


def test_a_run_of_an_earlier_version_keeps_the_schedule_that_it_has():
    """Twelve epochs with the drop of fifty, and steps with more epochs than they are."""
    early = to_yaml(resolve("deformable_detr_r50", {"train.epochs": 12, "train.drop": [40.0]}))
    assert from_yaml(early, "x").train.drop == [40]
    text = to_yaml(resolve("mask2former_r50_coco_instance")).replace("epochs: null", "epochs: 51")
    options = from_yaml(text, "x").train
    assert total_steps(options, 7375) == 368_750
    assert drop_shares(options.model_copy(update={"steps": 3000, "drop_steps": [2000]}), 100) == pytest.approx([2 / 3])


def test_a_study_of_another_length_has_the_shape_of_its_preset():
    subject = detector("deformable_detr_r50")
    assert subject.config().train.drop == [0.8]
    assert subject.config({"train.epochs": 4}).train.drop == [3.2]
    steps = subject.config({"train.steps": 50}).train
    assert (steps.epochs, steps.steps, steps.drop_steps) == (None, 50, [40])
    assert subject.config({"train.epochs": 4, "train.drop": [1.0]}).train.drop == [1.0]


def test_python_says_it_in_the_same_words(tmp_path, monkeypatch):
    """The ten lines of the README, up to the training."""
    seen = {}
    monkeypatch.setattr("dqdet.training.engine.train", lambda config, *others: seen.update(config=config))
    dqdet.train("deformable_detr_r50", out=tmp_path, data={"root": "/data/coco"}, train={"epochs": 12})
    assert seen["config"].train.drop == [9.6]
