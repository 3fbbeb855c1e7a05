"""Modulated models of ``transformers`` in the tools that people train and use these with."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import subprocess
import sys
from typing import Any
from unittest import mock

import accelerate
import numpy as np
import peft
import pytest
import torch
import transformers
from library_models import CLASSES, CONFIGS, QUERIES, build, inputs, outputs, targets
from PIL import Image
from test_modulated import assert_same, modulated
from torch import nn
from transformers.utils import hub

import dqdet
from dqdet.adapters import transformers as adapter
from dqdet.adapters.transformers.seams import KNOWN, SEAMS, UNSUPPORTED, check_seam, seam_of
from dqdet.errors import DqdetError

DETR, DEFORMABLE = "DetrForObjectDetection", "DeformableDetrForObjectDetection"
MASK2FORMER, LW_DETR = "Mask2FormerForUniversalSegmentation", "LwDetrForObjectDetection"
NOT_IN_BFLOAT16 = ("DabDetrForObjectDetection",)  # the class itself mixes types


class Images(torch.utils.data.Dataset):
    """Four images, and what is in them."""

    def __init__(self, model: nn.Module):
        given, wanted = inputs(model), targets(model)
        self.rows = [{name: column[number] for name, column in (given | wanted).items()} for number in (0, 1, 0, 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    lists = ("labels", "mask_labels", "class_labels")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: column if name in lists else torch.stack(column) for name, column in columns.items()}


@pytest.mark.parametrize("name", [DETR, DEFORMABLE, MASK2FORMER, LW_DETR])
def test_trainer(name, tmp_path):
    model = modulated(name)
    before = {key: parameter.clone() for key, parameter in model.queries.named_parameters()}
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    data = Images(model)
    trainer = transformers.Trainer(model, options, data_collator=collate, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert all(not torch.equal(parameter, before[key]) for key, parameter in model.queries.named_parameters())
    log = trainer.state.log_history
    assert all(np.isfinite(row["loss"]) for row in log if "loss" in row)
    # One group of queries in evaluation.
    assert trainer.predict(data).predictions[1].shape[1] == QUERIES

    given = inputs(model)
    with torch.no_grad():
        found = outputs(model.eval()(**given))
        assert_same(outputs(adapter.load(tmp_path / "checkpoint-3")(**given)), found, 0)
    again = transformers.Trainer(modulated(name), options, data_collator=collate, train_dataset=data, eval_dataset=data)
    again.args.max_steps = 4
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 4


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision):
    model = modulated(DEFORMABLE)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(Images(model), batch_size=2, collate_fn=collate)
    prepared, optimiser, data = accelerator.prepare(model.train(), optimiser, data)
    start = model.queries.basic["content"].clone()
    for batch in data:
        loss = prepared(**batch).loss
        assert loss.isfinite()
        accelerator.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
    assert not torch.equal(model.queries.basic["content"], start)


def test_peft(tmp_path):
    """LoRA on the attention of the decoder; the queries are trained in full, and are saved with it."""
    model = modulated(DETR)
    given, wanted = inputs(model), targets(model)
    before = outputs(model(**given))
    model.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(target_modules=r".*decoder.*\.(q_proj|v_proj)", modules_to_save=["queries"], r=2)
    adapted = peft.get_peft_model(model, lora)
    assert_same(outputs(adapted.eval()(**given)), before)
    trained = {key.split(".")[-2] for key, x in adapted.named_parameters() if x.requires_grad and "lora_" not in key}
    assert trained == {"basic", "0", "2"}

    optimiser = torch.optim.AdamW([x for x in adapted.parameters() if x.requires_grad], lr=1e-2)
    adapted.train()
    for _ in range(2):
        adapted(**given, **wanted).loss.backward()
        optimiser.step()
    source = adapted.base_model.model.queries
    assert all(x.grad.any() for x in source.modules_to_save["default"].parameters())
    found = outputs(adapted.eval()(**given))
    assert not torch.allclose(found["logits"], before["logits"], atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(adapter.load(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_same(outputs(loaded(**given)), found)


@pytest.mark.parametrize("name", [DETR, DEFORMABLE, "ConditionalDetrForObjectDetection"])
def test_gradient_checkpointing(name):
    gradients = []
    for checkpointing in (False, True):
        model = modulated(name)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**inputs(model), **targets(model)).loss.backward()
        gradients.append({key: x.grad for key, x in model.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "queries.coefficients.0.weight" in gradients[0]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.slow
@torch.no_grad()
def test_compile():
    """In one graph, as the class without queries of ours."""
    model = modulated(DETR)
    given = inputs(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(outputs(compiled(**given)), outputs(model(**given)), 0)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in CONFIGS if "with" not in name and name not in NOT_IN_BFLOAT16])
@torch.no_grad()
def test_bfloat16(name, tmp_path):
    """As far from single precision as the class itself, or nearly."""
    errors = []
    for change in (build, modulated):
        model = change(name)
        given = inputs(model)
        exact = next(iter(outputs(model(**given)).values()))
        model.save_pretrained(tmp_path)
        half = (adapter.load if change is modulated else type(model).from_pretrained)(tmp_path, dtype=torch.bfloat16)
        given["pixel_values"] = given["pixel_values"].bfloat16()
        rough = next(iter(outputs(half(**given)).values())).float()
        ok = exact.isfinite()
        errors.append(((rough - exact)[ok].abs().mean() / exact[ok].abs().mean()).item())
    assert errors[1] < 4 * errors[0] + 0.01


def test_average_of_weights():
    model = modulated(DETR)
    given = inputs(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    with torch.no_grad():
        start = model.queries.basic["position"].clone()
        model.queries.basic["position"] += 1
    average.update_parameters(model)
    torch.testing.assert_close(average.module.queries.basic["position"], start + 0.5)
    model.load_state_dict(average.module.state_dict())
    assert_same(outputs(model(**given)), outputs(average(**given)), 0)


def test_pipeline():
    model = modulated(DETR)
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    find = transformers.pipeline("object-detection", model=model, image_processor=processor, device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))
    found = find(image, threshold=0.0)
    assert 0 < len(found) <= QUERIES
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt"))
    scores = expected.logits.softmax(-1)[..., :CLASSES].amax(-1)[0]
    assert max(item["score"] for item in found) == pytest.approx(scores.max().item(), abs=1e-5)


PROCESSORS = {
    MASK2FORMER: transformers.Mask2FormerImageProcessor,
    "RfDetrForInstanceSegmentation": transformers.RfDetrImageProcessor,
}
TASKS = {
    "semantic": {},
    "instance": {"threshold": 0.0},
    "panoptic": {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0},
}


@pytest.mark.parametrize(
    ("name", "task"), [*((MASK2FORMER, task) for task in TASKS), ("RfDetrForInstanceSegmentation", "instance")]
)
@torch.no_grad()
def test_post_processing_of_every_task(name, task):
    """By the class's own image processor: what it makes of a modulated model is what it made of the model before."""
    processor = PROCESSORS[name]()
    post_process = getattr(processor, f"post_process_{task}_segmentation")
    model = build(name)
    given = inputs(model)

    def found() -> list[Any]:
        output = model(**given)
        if name == MASK2FORMER:  # queries of a random model are alike: their differences made large
            masks, classes = output.masks_queries_logits, output.class_queries_logits
            output.masks_queries_logits = (
                3 * (masks - masks.mean((2, 3), keepdim=True)) / masks.std((2, 3), keepdim=True)
            )
            output.class_queries_logits = 3 * (classes - classes.mean(1, keepdim=True)) / classes.std(1, keepdim=True)
        return post_process(output, target_sizes=[(48, 64), (40, 50)], **TASKS[task])

    before = found()
    adapter.modulate(model)
    for old, new in zip(before, found(), strict=True):
        if task == "semantic":
            assert len(old.unique()) > 1
            assert torch.equal(old, new)
        else:
            assert torch.equal(old["segmentation"], new["segmentation"])
            assert 0 < len(old["segments_info"]) == len(new["segments_info"]) <= QUERIES
            for one, other in zip(old["segments_info"], new["segments_info"], strict=True):
                assert other == one | {"score": pytest.approx(one["score"], abs=1e-4)}


def test_push_to_hub_writes_what_load_reads(tmp_path, monkeypatch):
    """All but the transfer."""
    model = modulated(DETR)

    def upload(self, working_dir, repo_id, *args, **kwargs):
        shutil.copytree(working_dir, tmp_path / "pushed")

    hf_api = mock.Mock()
    hf_api().create_repo().repo_id = "someone/mine"
    monkeypatch.setattr(hub, "hf_api", hf_api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", mock.Mock())
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    model.push_to_hub("someone/mine")
    given = inputs(model)
    assert_same(outputs(adapter.load(tmp_path / "pushed")(**given)), outputs(model(**given)), 0)


def test_the_class_of_the_library_says_what_it_ignores(tmp_path, caplog):
    modulated(DETR).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    rows = [line.split("|")[:2] for line in caplog.text.splitlines() if "|" in line]
    status = {name.strip(): what.strip() for name, what in rows}
    assert "UNEXPECTED" in status["queries.basic.position"]
    assert "UNEXPECTED" in status["queries.coefficients.{0, 2}.weight"]
    assert "MISSING" in status["model.query_position_embeddings.weight"]


def test_folders_of_other_models_are_refused(tmp_path):
    build(DETR).save_pretrained(tmp_path)
    with pytest.raises(DqdetError, match=r"has a DetrForObjectDetection, which has no modulated queries; load it with"):
        adapter.load(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.architectures = ["ModulatedDetrForObjectDetection"]
    config.modulated = {"count": QUERIES, "hidden": 16, "beta": 1.0}
    config.save_pretrained(tmp_path)
    with pytest.raises(DqdetError, match=r"has no queries.basic.position, .*; it was not saved by a ModulatedDetr"):
        adapter.load(tmp_path)
    with pytest.raises(DqdetError, match="configuration has no 'modulated'"):
        adapter.ModulatedDetrForObjectDetection(build(DETR).config)


def test_data_parallel_is_refused():
    with pytest.raises(DqdetError, match="DataParallel copies models without what makes their queries"):
        modulated(DETR)._replicate_for_data_parallel()


def test_imported_when_asked_for():
    assert dqdet.transformers is adapter
    assert dqdet.modulate is adapter.modulate
    assert adapter.ModulatedDetrForObjectDetection.__name__ == "ModulatedDetrForObjectDetection"
    with pytest.raises(AttributeError, match="ModulatedLinear"):
        adapter.ModulatedLinear  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        dqdet.other  # noqa: B018


def test_the_library_is_optional():
    program = """
import sys, dqdet
assert "transformers" not in sys.modules and "torch" not in sys.modules
sys.modules["transformers"] = None  # as if it were not installed
try:
    dqdet.modulate
except dqdet.DqdetError as error:
    print(error)
assert not hasattr(dqdet, "modulate") and not hasattr(dqdet, "transformers")
from dqdet import *
print(load.__name__, "modulate" in globals())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    message = "dqdet.modulate needs the transformers library: pip install 'dqdet[transformers]'"
    assert done.stdout.splitlines() == [message, "load False"]


def test_names_that_are_imported_when_asked_for_are_listed():
    assert set(dir(dqdet)) >= {*dqdet.__all__, "__version__", "modulate", "transformers"}
    assert all(hasattr(dqdet, name) for name in dir(dqdet))
    assert dqdet.__version__ == importlib.metadata.version("dqdet")


@pytest.mark.parametrize("name", CONFIGS)
def test_seams_are_where_they_were(name):
    """In the version of the library that is installed. The message of the error is the sentence to read."""
    model = build(name)
    check_seam(model, seam_of(model), "backbone")


def test_versions_that_are_known():
    found = transformers.__version__
    assert found.rpartition(".")[0] == KNOWN, (
        f"transformers {found} is installed and dqdet.modulate is known to work with {KNOWN}: if the other tests of "
        f"this folder pass, set KNOWN in seams.py and the versions in pyproject.toml"
    )


def test_moved_seams_are_told_in_a_sentence(monkeypatch):
    moved = r"DetrForObjectDetection of transformers [\d.]+ has {}.*; dqdet knows version 5.17: install that"
    model = build(DETR)
    table = model.model.query_position_embeddings
    model.model.query_position_embeddings = nn.Linear(1, 1)
    with pytest.raises(DqdetError, match=moved.format("no table query_position_embeddings of queries")):
        adapter.modulate(model)
    model.model.query_position_embeddings = table
    with monkeypatch.context() as patched:
        patched.setattr(type(model.model.decoder), "forward", lambda self, inputs_embeds: None)
        with pytest.raises(DqdetError, match=moved.format("a decoder without the argument object_queries_position")):
            adapter.modulate(model)
    model.model.decoder.layers[1].attention = model.model.decoder.layers[1].self_attn
    del model.model.decoder.layers[1].self_attn
    with pytest.raises(DqdetError, match=moved.format("decoder layers without self_attn")):
        adapter.modulate(model)
    del model.model.backbone.model
    with pytest.raises(DqdetError, match=moved.format("decoder layers without self_attn|no model.backbone.model")):
        adapter.modulate(model)
    del model.model.decoder
    with pytest.raises(DqdetError, match=moved.format("another structure")):
        adapter.modulate(model)


def test_every_class_is_in_one_list():
    assert not SEAMS.keys() & UNSUPPORTED.keys()
    assert all(hasattr(transformers, name) for name in (*SEAMS, *UNSUPPORTED))
    assert SEAMS.keys() == {name.split()[0] for name in CONFIGS}
