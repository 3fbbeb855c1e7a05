import csv
import json
import re
import resource
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from recorder import Recorder
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqdet.config import to_yaml
from dqdet.data import open_dataset
from dqdet.data.loader import make_loader
from dqdet.errors import DqdetError
from dqdet.inference.boxes import detections
from dqdet.losses import SetLoss
from dqdet.metrics.detection import DetectionMetric
from dqdet.models import create_model
from dqdet.predict.submission import submit
from dqdet.runs.folder import load_config, load_folder, load_metrics
from dqdet.training import engine, module, trainer
from dqdet.training.arriving import Arriving
from dqdet.training.engine import resume, train
from dqdet.training.evaluation import evaluate
from dqdet.training.module import DetectionModule
from dqdet.training.readiness import open_data
from dqdet.training.trainer import SynchronisedNorms, weight_averaging
from tiny import contents, tiny


class Weights(Recorder):
    """Keeps the weights before the first and after every step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_start(self, trainer, pl_module):
        self.first = {name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.weights.append({name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()})


class Poison(Recorder):
    """Makes the weights NaN before or after a step."""

    def __init__(self, *, before=None, after=None):
        super().__init__()
        self.before, self.after = before, after

    @staticmethod
    def poison(pl_module):
        torch.nn.init.constant_(pl_module.model.class_head[0].bias, torch.nan)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.before:
            self.images = [target.image_id for target in batch.targets]
            self.poison(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after:
            self.poison(pl_module)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_is_forward_loss_backward_clip_and_adamw(tmp_path):
    # The same training without Lightning.
    config = tiny(model__dropout=0.0, model__backbone__freeze=True, train__clip=0.5, train__warmup=2, train__epochs=2)
    recorder = Weights()
    train(config, tmp_path, [recorder])

    dataset = open_dataset(config.data, "train", seed=0)
    config.classes = dataset.classes
    torch.manual_seed(0)
    model = create_model(config).train()
    criterion = SetLoss(config.loss)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimiser = torch.optim.AdamW(
        [
            {"params": [parameter], "base": rate}
            for name, parameter in named.items()
            for rate in [5e-5 if "sampling_offsets" in name or "reference_points" in name else 5e-4]
        ],
        weight_decay=1e-4,
    )
    loader = make_loader(dataset, batch=4, train=True)
    losses = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * (0.5 if not losses else 1)
            total = criterion(model(batch.images, batch.padding), batch.targets).total
            optimiser.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimiser.step()
            losses.append(total.item())
    assert [loss for *_, loss, _ in recorder.steps] == pytest.approx(losses, rel=1e-5)
    queries = "queries.basic.content"  # of others some gradients are nothing but rounding errors, which Adam enlarges
    torch.testing.assert_close(recorder.weights[-1][queries], model.state_dict()[queries], rtol=1e-4, atol=1e-6)


def test_the_first_weights_are_drawn_from_the_seed(tmp_path):
    recorder = Weights()
    train(tiny(train__seed=7, train__steps=1), tmp_path, [recorder])
    torch.manual_seed(7)
    assert equal(recorder.first, create_model(load_config(tmp_path)).state_dict())


def test_the_best_model_is_kept_also_over_interruptions(tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.45, 0.6])
    monkeypatch.setattr(DetectionMetric, "compute", lambda self: {"AP": next(scores), "AP/cat": 0.1})
    recorder = Weights()
    train(tiny(), tmp_path, [recorder])
    assert load_metrics(tmp_path) == {"step": 6, "AP": 0.5, "AP/cat": 0.1}
    assert equal(load_file(tmp_path / "model.safetensors"), recorder.weights[5])

    resume(tmp_path, ["train.epochs=4"])
    assert load_metrics(tmp_path)["AP"] == 0.5
    recorder = Weights()
    resume(tmp_path, ["train.epochs=5"], [recorder])
    assert load_metrics(tmp_path) == {"step": 15, "AP": 0.6, "AP/cat": 0.1}
    assert equal(load_file(tmp_path / "model.safetensors"), recorder.weights[-1])


def test_validation_measures_the_saved_model(tmp_path):
    train(tiny(train__epochs=1, train__ema=0.5), tmp_path)
    model, config = load_folder(tmp_path)
    dataset = open_dataset(config.data, "val")
    metric = DetectionMetric(dataset.ground_truth(), dataset.category_ids)
    with torch.no_grad():
        for batch in make_loader(dataset, batch=2, train=False):
            sizes = [target.original_size for target in batch.targets]
            found = detections(model(batch.images, batch.padding), sizes, "focal", len(config.classes))
            metric.update([target.image_id for target in batch.targets], found)
    expected = metric.compute()
    assert {name: load_metrics(tmp_path)[name] for name in expected} == pytest.approx(expected)
    assert evaluate(tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.9, 0.993, 0.9999])
def test_what_counts_or_indexes_is_not_averaged(decay):
    """Averages of whole numbers are rounded down."""
    (callback,) = weight_averaging(decay)
    average = callback._kwargs["multi_avg_fn"]
    index, weights = torch.arange(169), torch.ones(1)
    found = torch.zeros_like(index)
    average([found], [index], 1)
    assert torch.equal(found, index)
    average([weights], [torch.zeros(1)], 1)
    torch.testing.assert_close(weights, torch.tensor([decay]))


def test_the_average_of_what_is_frozen_stays_the_same():
    (callback,) = weight_averaging(0.9997)
    frozen = torch.randn(1000)
    average = frozen.clone()
    for _ in range(1000):
        callback._kwargs["multi_avg_fn"]([average], [frozen], 1)
    assert torch.equal(average, frozen)


def test_the_average_is_where_the_model_is_trained():
    """Lightning moves the model after it has set up what keeps the average."""
    (callback,) = weight_averaging(0.9)
    module = LightningModule()
    module.weight = torch.nn.Parameter(torch.zeros(1))
    callback.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta"))), module, "fit")
    assert callback._average_model.module.weight.device.type == "meta"


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_002", "resnet18"])
def test_norms_of_several_processes_keep_their_activations(name):
    torch.manual_seed(0)
    body = timm.create_model(name, features_only=True).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = body(images)
    norms = SynchronisedNorms()
    synchronised = norms.revert(norms.apply(body))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    for found, wanted in zip(synchronised.eval()(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_moving_average_is_what_is_validated_and_saved(tmp_path):
    recorder = Weights()
    train(tiny(train__epochs=1, train__ema=0.75), tmp_path, [recorder])
    first, *others = recorder.weights
    average = dict(first)
    for weights in others:
        average = {name: 0.75 * average[name] + 0.25 * weights[name] for name in average}
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in average.items():
        if first[name].is_floating_point():
            torch.testing.assert_close(saved[name], tensor, rtol=1e-5, atol=1e-7)
    assert not equal(saved, recorder.weights[-1])


def test_the_run_folder_knows_the_classes_of_the_data(tmp_path):
    config = tiny(train__steps=1)
    train(config, tmp_path)
    saved, dataset = load_config(tmp_path), open_dataset(config.data, "val")
    assert (saved.classes, saved.category_ids) == (dataset.classes, dataset.category_ids)
    assert saved.model_copy(update={"classes": [], "category_ids": []}) == config


def test_logs_have_losses_rates_and_metrics(tmp_path):
    train(tiny(train__epochs=4, train__validate_every=2, train__drop=[3.0]), tmp_path)
    with (tmp_path / "logs/csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(tmp_path / "logs/tensorboard/version_0")).Reload()
    logged = set(events.Tags()["scalars"])
    terms = {
        f"{group}/{layer}/{term}"
        for group in ("modulated", "basic")
        for layer in (0, 1)
        for term in ("class", "box", "giou")
    }
    assert {f"train/{name}" for name in terms | {"loss"}} <= logged
    assert {"val/AP", "val/AP50", "val/AR100", "lr-AdamW/rest", "lr-AdamW/backbone", "lr-AdamW/offsets"} <= logged
    assert [row["epoch"] for row in rows if row["val/AP"]] == ["1", "3"]
    assert [float(row["train/loss"]) > 0 for row in rows if row["train/loss"]] == [True]  # of step 10
    assert [event.value for event in events.Scalars("lr-AdamW/rest")] == pytest.approx([5e-5])


def test_progress_is_written_where_there_is_no_terminal(tmp_path, capsys):
    train(tiny(), tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "12 training and 4 validation images, 8 classes" in lines[0]
    assert re.fullmatch(r"epoch 2/3  step 6  loss \d+\.\d+  AP 0\.\d+  [\d.]+ images/s  \d:\d\d:\d\d left", lines[2])
    assert len(lines) == 4


class Modes(Weights):
    """Keeps which parts of the model are in training mode in each step, too."""

    def __init__(self):
        super().__init__()
        self.training = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.training.append({name for name, module in pl_module.model.named_modules() if module.training})


def test_a_frozen_backbone_stays_what_it_is_after_validations_too(tmp_path):
    train(tiny(train__backbone_lr=0, train__epochs=2, model__backbone__drop_path=0.5), tmp_path, [modes := Modes()])
    assert modes.first.keys() >= {"backbone.body.bn1.running_mean", "backbone.body.bn1.num_batches_tracked"}
    for weights, training in zip(modes.weights, modes.training, strict=True):  # steps 4 to 6 follow a validation
        changed = {name for name, tensor in weights.items() if not torch.equal(tensor, modes.first[name])}
        assert {name for name in changed if name.startswith("backbone.")} == set()
        assert "queries.basic.content" in changed
        assert {name.partition(".")[0] for name in training} >= {"", "decoder", "queries"}
        assert {name for name in training if name.startswith("backbone")} == set()
    assert len(modes.weights) == 6


def test_shown_and_logged_losses_do_not_depend_on_accumulation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    recorder = Recorder()
    train(tiny(train__epochs=1, train__accumulate=4), tmp_path, [recorder])
    shown = float(re.search(r"loss ([\d.]+)", capsys.readouterr().err)[1])
    losses = [loss for *_, loss, _ in recorder.steps]  # each a quarter of its batch's loss
    assert len(losses) == 12
    assert shown == pytest.approx(4 * sum(losses) / len(losses), abs=1e-3)
    with (tmp_path / "logs/csv/version_0/metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["train/loss"]]
    steps = [sum(losses[first : first + 4]) for first in (0, 4, 8)]
    assert [float(row["train/loss"]) for row in logged] == pytest.approx(steps)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    poison = Poison(before=5)
    with pytest.raises(DqdetError) as caught:
        train(tiny(), tmp_path, [poison])
    images = ", ".join(map(str, poison.images))
    assert str(caught.value).startswith(
        f"the loss is nan in step 5 (epoch 2, images {images}); the last checkpoint is kept"
    )
    recorder = Recorder()
    resume(tmp_path, callbacks=[recorder])
    assert [step[:2] for step in recorder.steps[:4]] == [(1, 0), (1, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize("options", [{}, {"train__steps": 6}, {"train__validate_every": 3}])
def test_a_loss_that_is_not_finite_at_the_end_of_an_epoch_is_seen_before_anything_is_saved(options, tmp_path):
    poison = Poison(before=6)
    with pytest.raises(DqdetError) as caught:
        train(tiny(**options), tmp_path, [poison])
    images = ", ".join(map(str, poison.images))
    assert str(caught.value).startswith(f"the loss is nan in step 6 (epoch 2, images {images}); ")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_loss_arrives_as_it_was_when_it_was_sent():
    loss = torch.tensor(2.5, requires_grad=True)
    arriving = Arriving(loss)
    loss.detach().fill_(torch.nan)
    assert arriving.item() == 2.5


def test_logged_losses_are_means_over_processes_in_one_reduction(monkeypatch):
    config = tiny()
    dataset = open_dataset(config.data, "train", seed=0)
    config.classes = dataset.classes
    module = DetectionModule(create_model(config).train(), config)
    reduced, logged = [], {}

    def reduce(tensor, reduce_op):
        assert reduce_op == "mean"
        reduced.append(tensor)
        return 2 * tensor  # as if the other process had three times as much

    strategy = SimpleNamespace(reduce=reduce)
    module._trainer = SimpleNamespace(global_step=9, current_epoch=3, strategy=strategy)
    monkeypatch.setattr(module, "log_dict", lambda values, batch_size: logged.update(values))
    batch = next(iter(make_loader(dataset, batch=4, train=True)))
    loss = module.training_step(batch, 0)
    assert len(reduced) == 1
    assert len(logged) == len(reduced[0]) == 1 + 2 * 2 * 3
    assert logged["train/loss"] == 2 * loss
    weights = {"class": config.loss.class_weight, "box": config.loss.box_weight, "giou": config.loss.giou_weight}
    total = sum(weights[name.rsplit("/")[-1]] * value for name, value in logged.items() if name != "train/loss")
    torch.testing.assert_close(total, logged["train/loss"])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(DqdetError, match="the weights are not finite after step 6; the last checkpoint is kept"):
        train(tiny(), tmp_path, [Poison(after=6)])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def test_a_disk_that_fills_up_ends_the_training_and_keeps_the_last_checkpoint(tmp_path):
    class FullDisk(Recorder):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                self.before = contents(tmp_path)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = FullDisk()
    try:
        with pytest.raises(DqdetError, match=r"last\.ckpt: cannot be written .*; the previous file is kept"):
            train(tiny(), tmp_path, [full])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.before.pop(".lock")
    assert contents(tmp_path) == full.before
    resume(tmp_path)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DqdetError, match=r"train\.batch=4 is not divisible by 1 processes times train\.accumulate=3"):
        train(tiny(train__accumulate=3), tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DqdetError, match="8 processes"):
        open_data(tiny())
    assert contents(tmp_path) == {}


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(DqdetError, match=r"train\.batch=16 is more than the 12 images"):
        train(tiny(train__batch=16), tmp_path)


def test_a_used_folder_is_refused_before_anything_is_changed(tmp_path):
    train(tiny(train__steps=1), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DqdetError, match="has a run already"):
        train(tiny(), tmp_path)
    assert contents(tmp_path) == before


def test_data_with_other_classes_is_refused(tmp_path):
    train(tiny(train__steps=1), tmp_path)
    config = load_config(tmp_path)
    config.classes[0] = "horse"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    for use in (evaluate, resume):
        with pytest.raises(DqdetError, match=r"8 classes are not the 8 of the model .*only in the model: horse"):
            use(tmp_path)


def test_splits_with_different_classes_are_refused(tmp_path):
    for split, names in {"train": ["a", "b"], "val": ["a"]}.items():
        (tmp_path / split).mkdir()
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        document = {"images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}], "categories": categories}
        (tmp_path / split / "1.jpg").write_bytes(b"")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(document | {"annotations": []}))
    config = tiny(data__kind="coco", data__root=str(tmp_path))
    with pytest.raises(DqdetError, match=r"validation split: its 1 classes are not the 2 .*only in the .*: b"):
        train(config, tmp_path / "run")


def test_evaluation_with_overrides_leaves_the_metrics_of_the_run(tmp_path):
    train(tiny(train__steps=1), tmp_path)
    before = contents(tmp_path)
    evaluate(tmp_path, ["data.scenes.seed=1"])
    assert contents(tmp_path) == before
    evaluate(tmp_path)
    assert load_metrics(tmp_path) == pytest.approx(json.loads(before["metrics.json"]))


@pytest.mark.parametrize(
    "option",
    [
        *("model.hidden=64", "model.family=detr", "queries.kind=static", "classes=[a]", "loss.beta=0", "train.lr=1"),
        *("data.flip=false", "data.scenes.train_images=3", "init=x"),
    ],
)
def test_evaluation_refuses_what_has_no_effect(trained, option):
    before = contents(trained)
    path = option.split("=")[0]
    with pytest.raises(
        DqdetError, match=rf"^{path} has no effect on a model that is trained; .* data\.root.* inference"
    ):
        evaluate(trained, [option])
    with pytest.raises(DqdetError, match=rf"^{path} has no effect on a model that is trained"):
        submit(trained, trained / "results.zip", [option])
    assert contents(trained) == before


def test_evaluation_takes_what_has_an_effect(trained):
    assert evaluate(trained, ["inference.limit=1"])["AR100"] <= evaluate(trained)["AR100"]
    evaluate(trained, ["train.batch=2", "data.val_resize=32", "data.scenes.val_images=2", "train.precision=bf16-mixed"])
    with pytest.raises(DqdetError, match=r"unknown option 'inference\.limits', did you mean inference\.limit"):
        evaluate(trained, ["inference.limits=1"])
    with pytest.raises(DqdetError, match=r"train\.batch has no effect"):  # videos come one at a time
        submit(trained, trained / "results.zip", ["train.batch=1"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny(train__steps=1), folder)
    return folder


def test_half_precision_of_gpus_becomes_single_on_a_cpu_and_says_so(tmp_path, capsys):
    recorders = {}
    for precision in ("16-mixed", "32"):
        recorders[precision] = Recorder()
        train(tiny(train__steps=2, train__precision=precision), tmp_path / precision, [recorders[precision]])
        said = "train.precision=16-mixed needs a CUDA device; going on with 32\n" in capsys.readouterr().err
        assert said == (precision == "16-mixed")
    assert recorders["16-mixed"].steps == recorders["32"].steps
    assert load_config(tmp_path / "16-mixed").train.precision == "16-mixed"


@pytest.mark.parametrize(
    ("cuda", "tf32", "inside"),
    [(True, True, ("high", True)), (True, False, ("highest", False)), (False, True, ("medium", True))],
)
def test_trainings_on_cuda_multiply_as_configured_and_leave_all_else_as_it_was(
    cuda, tf32, inside, tmp_path, monkeypatch
):
    class Stop(Exception):
        pass

    def set_now() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def fit(*arguments, **options):
        raise Stop(set_now())

    torch.set_float32_matmul_precision("medium")  # what the program has chosen for all else
    torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(engine, "quietly", fit)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: cuda)
        patched.setattr(engine, "make_trainer", lambda *arguments, **options: SimpleNamespace(fit=None))
        with pytest.raises(Stop) as stopped:
            train(tiny(train__tf32=tf32), tmp_path)
    assert stopped.value.args == (inside,)
    assert set_now() == ("medium", True)
