import math
import signal
from contextlib import nullcontext

import pytest
import torch
from recorder import Recorder
from safetensors.torch import load_file

from dqdet.config import to_yaml
from dqdet.errors import DqdetError, Interrupted
from dqdet.runs.folder import load_config, load_metrics
from dqdet.training.engine import resume, train
from tiny import contents, tiny

# Of 9 batches of 4 images, in 3 epochs.
INTERRUPTIONS = {
    "within the first epoch": [1],
    "within the second epoch": [4],
    "after the first epoch": [3],
    "twice within an epoch": [1, 1],
    "after every epoch, then within one": [3, 3, 1],
}
VARIANTS = {
    "plain": {},
    "average": {"train__ema": 0.9},
    "accumulation, and images that fill no step": {"train__accumulate": 2, "data__scenes__train_images": 14},
    "workers": {"data__workers": 2},
    "rare validation": {"train__validate_every": 2},
    "steps": {"train__steps": 8},
}


def result(folder) -> dict:
    weights = {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}
    return weights | load_metrics(folder)


def interrupted_training(config, folder, interruptions) -> Recorder:
    whole = Recorder()
    for i, after in enumerate([*interruptions, None]):
        part = Recorder(signal_after=after)
        expected = nullcontext() if after is None else pytest.raises(Interrupted, match=f"--resume {folder}")
        with expected:
            train(config, folder, [part]) if i == 0 else resume(folder, callbacks=[part])
        whole.steps += part.steps
        whole.validations += part.validations
    return whole


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Trainings without interruption, by variant, as (recorder, best model and its metrics)."""
    done = {}

    def trained(variant):
        if variant not in done:
            folder = tmp_path_factory.mktemp("run")
            done[variant] = interrupted_training(tiny(**VARIANTS[variant]), folder, []), result(folder)
        return done[variant]

    return trained


@pytest.mark.parametrize(
    ("variant", "interruption"),
    [("plain", name) for name in INTERRUPTIONS]
    + [(name, "within the second epoch") for name in VARIANTS if name != "plain"]
    + [("average", "after the first epoch"), ("rare validation", "after the first epoch")],
)
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(variant, interruption, uninterrupted, tmp_path):
    expected, best = uninterrupted(variant)
    found = interrupted_training(tiny(**VARIANTS[variant]), tmp_path, INTERRUPTIONS[interruption])
    assert found.steps == expected.steps
    assert found.validations == expected.validations
    assert result(tmp_path) == best


def test_dropout_is_on_in_these_trainings(uninterrupted, tmp_path):
    without = interrupted_training(tiny(model__dropout=0.0), tmp_path, [])
    assert without.steps != uninterrupted("plain")[0].steps


def test_sigterm_stops_like_ctrl_c(tmp_path):
    recorder = Recorder(signal_after=2, signal=signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="stopped after step 2"):
        train(tiny(), tmp_path, [recorder])
    assert len(recorder.steps) == 2
    assert (tmp_path / "last.ckpt").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_stops_at_once(tmp_path):
    class Impatient(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    recorder = Impatient()
    with pytest.raises(Interrupted, match="stopped at once"):
        train(tiny(), tmp_path, [recorder])
    assert len(recorder.steps) == 1
    assert not (tmp_path / "last.ckpt").exists()


def test_a_signal_during_validation_lets_it_end(tmp_path):
    class DuringValidation(Recorder):
        def on_validation_batch_end(self, *_):
            if len(self.steps) == 3:
                signal.raise_signal(signal.SIGINT)

    recorder = DuringValidation()
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train(tiny(), tmp_path, [recorder])
    assert {"model.safetensors", "metrics.json", "last.ckpt"} <= set(contents(tmp_path))


def test_an_epoch_survives_a_crash_in_its_validation(tmp_path, uninterrupted):
    class Crash(Recorder):
        def on_validation_batch_end(self, *_):
            if len(self.steps) == 6:
                raise RuntimeError("killed")

    first, second = Crash(), Recorder()
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), tmp_path, [first])
    resume(tmp_path, callbacks=[second])
    assert first.steps + second.steps == uninterrupted("plain")[0].steps


def test_a_finished_training_can_be_prolonged(tmp_path, uninterrupted):
    expected, best = uninterrupted("plain")
    first, second, third = Recorder(), Recorder(), Recorder()
    train(tiny(train__epochs=1), tmp_path, [first])
    resume(tmp_path, ["train.epochs=3"], [second])
    assert first.steps + second.steps == expected.steps
    assert result(tmp_path) == best
    resume(tmp_path, ["train.epochs=3"], [third])
    assert third.steps == []


def test_only_the_length_and_the_place_of_the_data_may_change(tmp_path):
    train(tiny(train__steps=1), tmp_path)
    before = contents(tmp_path)
    for option in ("train.lr=1", "model.hidden=64", "queries.kind=static", "train.seed=1"):
        with pytest.raises(DqdetError, match=f"{option.split('=')[0]} cannot change"):
            resume(tmp_path, [option])
    with pytest.raises(DqdetError, match="did you mean train"):
        resume(tmp_path, ["train.epoch=1"])
    assert contents(tmp_path) == before


def test_a_run_without_a_checkpoint_cannot_go_on(tmp_path):
    with pytest.raises(DqdetError, match="no such folder"):
        resume(tmp_path / "nothing")
    train(tiny(train__steps=1), tmp_path)
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(DqdetError, match=r"last\.ckpt: no such file"):
        resume(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tiny(train__steps=1), tmp_path)
    config = load_config(tmp_path)
    config.queries.count = 6
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(DqdetError, match=r"another model than configured: 4 of another shape \(model\.queries"):
        resume(tmp_path)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_checkpoint_is_named(tmp_path, size):
    train(tiny(train__steps=1), tmp_path)
    file = tmp_path / "last.ckpt"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DqdetError, match=r"last\.ckpt: damaged or cut short"):
        resume(tmp_path)


def test_a_checkpoint_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path / "executed").mkdir, ()

    train(tiny(train__steps=1), tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "last.ckpt")
    with pytest.raises(DqdetError, match="damaged"):
        resume(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_losses_are_finite_and_differ_between_steps(uninterrupted):
    losses = [loss for *_, loss, _ in uninterrupted("plain")[0].steps]
    assert len(set(losses)) == 9
    assert all(math.isfinite(loss) for loss in losses)
