"""Whatever becomes of the files of a run or of published weights, they are read or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, bounded, damaged, examples, mutated, values
from safetensors.torch import load_file, save_file
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from dqdet.runs.folder import load_metrics
from dqdet.runs.sources import load_model
from dqdet.training.engine import resume, train
from dqdet.weights.detr import DETR
from dqdet.weights.renaming import merge_projections, rename
from tiny import tiny

TENSORS = [
    torch.tensor(float("nan")),
    torch.full((8,), float("nan")),
    torch.zeros(0),
    torch.zeros(3, 5, 7),
    torch.zeros(8, dtype=torch.int64),
    torch.ones(1).expand(2**33),
    torch.eye(3).to_sparse(),
    torch.zeros(8, dtype=torch.complex64),
    torch.zeros(8, dtype=torch.float8_e5m2),
]
odd = st.sampled_from(TENSORS) | values


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(tiny(train__epochs=1, train__drop=[]), folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder of transformers with a DETR that is as small as its backbone allows."""
    folder = tmp_path_factory.mktemp("published")
    stages = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "out_features": ["stage4"]}
    backbone = ResNetConfig(embedding_size=64, layer_type="basic", **stages)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5, "num_labels": 3}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    options = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    config = DetrConfig(backbone_config=backbone, **options, **sizes)
    DetrForObjectDetection(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "metrics.json"])
def test_damaged_files_of_a_run(run, name):
    content = (run / name).read_bytes()

    @given(damage=damaged(content))
    @examples(6)
    def fuzz(damage):
        (run / name).write_bytes(damage)
        with bounded():
            load_model(run)

    try:
        fuzz()
    finally:
        (run / name).write_bytes(content)


def test_metrics(run):
    content = (run / "metrics.json").read_bytes()

    @given(metrics=mutated(json.loads(content)))
    @examples(40)
    def fuzz(metrics):
        (run / "metrics.json").write_bytes(as_json(metrics))
        with bounded():
            load_metrics(run)

    try:
        fuzz()
    finally:
        (run / "metrics.json").write_bytes(content)


def test_states_of_a_training(run):
    content = (run / "last.ckpt").read_bytes()
    state = torch.load(run / "last.ckpt", weights_only=True)

    @given(changed=mutated(state, odd))
    @examples(6)
    def fuzz(changed):
        torch.save(changed, run / "last.ckpt")
        with bounded():
            resume(run)

    try:
        fuzz()
    finally:
        (run / "last.ckpt").write_bytes(content)


def test_published_checkpoints(published, tmp_path):
    """PyTorch's files with the parameters' names of the official code, which those of transformers become."""
    state = rename(load_file(published / "model.safetensors"), DETR.huggingface.rules)
    state = {
        name.replace(".cross_attn.", ".multihead_attn."): tensor for name, tensor in merge_projections(state).items()
    }
    checkpoint = {"model": state, "epoch": 3}
    file = tmp_path / "detr.pth"
    torch.save(checkpoint, file)
    load_model(file)  # which is right

    @given(changed=mutated(checkpoint, odd))
    @examples(10)
    def fuzz(changed):
        torch.save(changed, file)
        with bounded():
            load_model(file)

    fuzz()


def test_folders_of_transformers(published):
    config, weights = (published / name for name in ("config.json", "model.safetensors"))
    content, packed, state = config.read_bytes(), weights.read_bytes(), load_file(weights)
    load_model(published)  # which is right

    @given(data=st.data())
    @examples(12)
    def fuzz(data):
        config.write_bytes(as_json(data.draw(mutated(json.loads(content)))))
        if data.draw(st.integers(0, 3)) == 0:
            changed = data.draw(mutated(state, st.sampled_from(TENSORS[:5])))
            tensors = {
                name: tensor.contiguous() for name, tensor in changed.items() if isinstance(tensor, torch.Tensor)
            }
            save_file(tensors, weights)
        with bounded():
            load_model(published)
        weights.write_bytes(packed)

    try:
        fuzz()
    finally:
        config.write_bytes(content)
