import math
import os
import resource
import signal
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback
from recorder import Recorder
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqdet.config import to_yaml
from dqdet.errors import DqdetError, Interrupted
from dqdet.runs.folder import load_config, load_metrics, save_metrics
from dqdet.runs.lock import held
from dqdet.training import callbacks, module, trainer
from dqdet.training.engine import resume, train
from dqdet.training.evaluation import evaluate
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
LOG = "logs/csv/version_0/metrics.csv"


def result(folder) -> dict:
    weights = {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}
    return weights | load_metrics(folder) | {"log": (folder / LOG).read_text()}


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
    + [
        (name, "within the second epoch")
        for name in VARIANTS
        if name not in ("plain", "steps", "rare validation", "workers")
    ]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("steps", "within the second epoch"),
            ("workers", "within the second epoch"),
            ("rare validation", "within the second epoch"),
            ("average", "after the first epoch"),
            ("rare validation", "after the first epoch"),
        )
    ],
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


def test_a_second_signal_to_a_job_of_another_process_loses_nothing(tmp_path, monkeypatch, capsys):
    class Twice(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                signal.raise_signal(signal.SIGINT)  # to the whole group of a study
                signal.raise_signal(signal.SIGTERM)  # passed on by its main process

    monkeypatch.setattr(callbacks.multiprocessing, "parent_process", lambda: "of a study")
    with pytest.raises(Interrupted, match="stopped after step 2"):
        train(tiny(), tmp_path, [Twice()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert "once more" not in capsys.readouterr().err


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


def test_a_training_without_enough_memory_goes_on_with_less(tmp_path):
    class Hungrier(Recorder):
        def on_train_batch_start(self, *_):
            if len(self.steps) == 5:
                torch.empty(10**15)  # which fails

    whole, first, rest = Recorder(), Hungrier(), Recorder()
    train(tiny(), tmp_path / "whole", [whole])
    run = tmp_path / "run"
    with pytest.raises(DqdetError, match=f"not enough memory.*`dqdet train --resume {run} train.recompute=true`"):
        train(tiny(), run, [first])
    resume(run, ["train.recompute=true"], [rest])
    assert rest.steps == whole.steps[3:]  # from its last checkpoint, that of the first epoch


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_prolonged_training_has_the_rates_of_its_length_at_once(tmp_path):
    poly = {"train__schedule": "poly", "train__drop": []}
    whole, shorter, prolonged = Rates(), Rates(), Rates()
    train(tiny(train__epochs=3, **poly), tmp_path / "whole", [whole])
    train(tiny(train__epochs=2, **poly), tmp_path / "run", [shorter])
    resume(tmp_path / "run", ["train.epochs=3"], [prolonged])
    assert prolonged.rates == whole.rates[len(shorter.rates) :]


def test_a_finished_training_can_be_prolonged(tmp_path, uninterrupted):
    expected, best = uninterrupted("plain")
    first, second, third = Recorder(), Recorder(), Recorder()
    train(tiny(train__epochs=1), tmp_path, [first])
    resume(tmp_path, ["train.epochs=3"], [second])
    assert first.steps + second.steps == expected.steps
    assert result(tmp_path) == best
    resume(tmp_path, ["train.epochs=3"], [third])
    assert third.steps == []
    assert result(tmp_path) == best


def test_a_new_length_is_kept_when_it_is_interrupted(tmp_path):
    train(tiny(train__epochs=1), tmp_path)
    with pytest.raises(Interrupted, match=f"--resume {tmp_path}"):
        resume(tmp_path, ["train.epochs=3"], [Recorder(signal_after=4)])
    assert load_config(tmp_path).train.epochs == 3
    resume(tmp_path, callbacks=[rest := Recorder()])
    assert len(rest.steps) == 2


def test_a_length_that_is_passed_already_is_refused(tmp_path):
    train(tiny(train__epochs=2), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DqdetError, match=r"train\.epochs=1 is less than the 2 epochs"):
        resume(tmp_path, ["train.epochs=1"])
    with pytest.raises(DqdetError, match=r"train\.steps=5 is less than the 6 steps"):
        resume(tmp_path, ["train.steps=5"])
    assert contents(tmp_path) == before


def test_a_validation_that_was_cut_short_is_done_and_logged(tmp_path, uninterrupted):
    class Crash(Recorder):
        def on_validation_batch_end(self, *_):
            if len(self.steps) == 6:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), tmp_path, [Crash()])
    with (tmp_path / LOG).open("a") as file:
        file.write("6,0.1,1")  # of a step that is done again, and only half a row
    resume(tmp_path, callbacks=[second := Recorder()])
    expected, best = uninterrupted("plain")
    assert second.validations == expected.validations[1:]
    assert result(tmp_path) == best


def test_curves_of_tensorboard_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)

    class Crash(Recorder):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            if len(self.steps) == 6:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), tmp_path, [Crash()])
    resume(tmp_path)
    events = EventAccumulator(str(tmp_path / "logs/tensorboard/version_0")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(9))
    assert [event.step for event in events.Scalars("val/AP")] == [2, 5, 8]
    assert len(list(tmp_path.glob("logs/*/*"))) == 2


def test_missing_metrics_are_those_of_the_model(tmp_path, capsys):
    train(tiny(train__epochs=2), tmp_path)
    metrics = load_metrics(tmp_path)
    (tmp_path / "metrics.json").unlink()
    resume(tmp_path)
    assert load_metrics(tmp_path) == metrics
    assert f"{tmp_path}/metrics.json: was missing; written again from model.safetensors" in capsys.readouterr().err
    save_metrics(tmp_path, {"step": 1, "AP": -1.0})  # killed after the model was written
    resume(tmp_path)
    assert load_metrics(tmp_path) == metrics


def test_a_missing_model_is_not_replaced_by_a_worse_one(tmp_path):
    train(tiny(train__epochs=2), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    before = contents(tmp_path)
    with pytest.raises(DqdetError, match=r"model\.safetensors: missing, while metrics\.json says"):
        resume(tmp_path, ["train.epochs=3"])
    assert contents(tmp_path) == before


def test_two_processes_do_not_resume_the_same_run(tmp_path):
    train(tiny(train__epochs=1), tmp_path)
    with held(tmp_path), pytest.raises(DqdetError, match=f"{tmp_path}: in use by process {os.getpid()} on .* since 20"):
        resume(tmp_path, ["train.epochs=2"])


def test_an_evaluation_leaves_the_metrics_to_a_training_that_goes_on(tmp_path, capsys):
    train(tiny(train__epochs=1), tmp_path)
    save_metrics(tmp_path, {"step": 3, "AP": 0.25})
    with held(tmp_path):
        evaluate(tmp_path)
    assert load_metrics(tmp_path) == {"step": 3, "AP": 0.25}
    assert "metrics.json is left to the training that goes on" in capsys.readouterr().err


def test_a_full_disk_in_the_logs_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(module, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))

    try:
        with pytest.raises(DqdetError) as error:
            train(tiny(), tmp_path, [FullDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).startswith(f"{tmp_path}: cannot be written (File too large); make space")
    assert "Traceback" not in capfd.readouterr().err
    resume(tmp_path)
    steps = [line.split(",")[1] for line in (tmp_path / LOG).read_text().splitlines()]
    assert len(steps) == 1 + 9 + 9 + 3


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
