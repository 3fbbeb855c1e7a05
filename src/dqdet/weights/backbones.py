"""Backbones in published weights: their names there, what their shapes tell, and files that hold one alone."""

from __future__ import annotations

import os
from pathlib import Path

from dqdet.errors import DqdetError
from dqdet.weights.reading import read_checkpoint
from dqdet.weights.renaming import Rule, State, count_modules, rename

# ResNets of detectron2 become torchvision's.
DETECTRON2_RESNET: list[Rule] = [
    (r"^backbone\.stem\.", "backbone.body."),
    *((rf"^backbone\.res{stage + 1}\.", f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4)),
    (r"^(backbone\..*)\bconv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\..*)\bshortcut\.norm\.", r"\1downsample.1."),
    (r"^(backbone\..*)\bshortcut\.", r"\1downsample.0."),
]

# Swin transformers become timm's, where each stage begins with the step down that ended the one before.
DETECTRON2_SWIN: list[Rule] = [
    (r".*\.relative_position_index$", ""),  # follows from the window
    (r"^backbone\.norm(\d)\.", r"backbone.norms.\1."),
    *((rf"^backbone\.layers\.{i}\.downsample\.", f"backbone.body.layers_{i + 1}.downsample.") for i in range(3)),
    (r"^backbone\.layers\.(\d)\.", r"backbone.body.layers_\1."),
    (r"^backbone\.patch_embed\.", "backbone.body.patch_embed."),
]

# In ``transformers`` it is timm's or the library's own ResNet, nested once more in older versions and in DAB-DETR.
HUGGINGFACE_RESNET: list[Rule] = [
    (r"^backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?", "backbone.0.body."),
    (r"^(backbone\.0\.body)\.embedder\.embedder\.", r"\1.layer.0."),
    *((rf"^(backbone\.0\.body)\.encoder\.stages\.{i}\.layers\.", rf"\1.layer{i + 1}.") for i in range(4)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    *((rf"^(backbone\..*)\.layer\.{i}\.convolution\.", rf"\1.conv{i + 1}.") for i in range(3)),
    *((rf"^(backbone\..*)\.layer\.{i}\.normalization\.", rf"\1.bn{i + 1}.") for i in range(3)),
]

# Its Swin transformers become detectron2's where these are renamed. No feature map passes through the last norm.
HUGGINGFACE_SWIN: list[Rule] = [
    (r"^backbone\.model\.(?:swin\.)?layernorm\..*", ""),
    (r"^backbone\.model\.(?:swin\.)?encoder\.layers\.", "backbone.layers."),
    (r"^backbone\.model\.(?:swin\.)?embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^backbone\.model\.(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    *((rf"^backbone\.model\.hidden_states_norms\.stage{i + 1}\.", f"backbone.norm{i}.") for i in range(4)),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)$", r".attn.qkv.\2.\1"),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.(?:self|relative_position_bias)\.(?=relative_position)", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
]

# Blocks of the four stages, and whether a block has a third convolution.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

# Channels after the first step, blocks of the four stages, and entries of a window's table of relative positions.
SWINS: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 13 * 13): "swin_t",
    (96, (2, 2, 18, 2), 13 * 13): "swin_s",
    (128, (2, 2, 18, 2), 13 * 13): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 23 * 23): "swin_b",
    (192, (2, 2, 18, 2), 13 * 13): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 23 * 23): "swin_l",
}


def recognise(state: State) -> str:
    """The name of the backbone of a model whose parameters (ours, after conversion) these are.

    Raises:
        DqdetError: it is neither one of `RESNETS` nor of `SWINS`.
    """
    if "backbone.body.patch_embed.proj.weight" in state:
        blocks = tuple(count_modules(state, f"backbone.body.layers_{stage}.blocks.") for stage in range(4))
        table = state["backbone.body.layers_0.blocks.0.attn.relative_position_bias_table"]  # [entries, heads]
        name = SWINS.get((len(state["backbone.body.patch_embed.proj.weight"]), blocks, len(table)))
        if name is None:
            raise DqdetError(f"the backbone is none of {', '.join(SWINS.values())}")
        return name
    stages = tuple(count_modules(state, f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4))
    name = RESNETS.get((stages, "backbone.body.layer1.0.conv3.weight" in state))
    if name is None:
        raise DqdetError(f"the backbone is none of {', '.join(RESNETS.values())}, with batch norms")
    return name


def read_backbone(file: Path, name: str) -> State:
    """The parameters in a file, with the names of torchvision where detectron2 has its own for them.

    Args:
        file: as for `dqdet.weights.reading.read_checkpoint`.
        name: of the backbone, for messages.

    Raises:
        DqdetError: there is no such file, or it has no parameters.
    """
    if not os.path.isfile(file):
        raise DqdetError(f"model.backbone.weights={file}: no such file")
    try:
        state, _ = read_checkpoint(file)
    except DqdetError as error:
        raise DqdetError(f"model.backbone.weights={file}: not weights of {name} ({error})") from error
    if "stem.conv1.norm.weight" not in state:
        return state
    state = rename({f"backbone.{parameter}": tensor for parameter, tensor in state.items()}, DETECTRON2_RESNET)
    return {parameter.removeprefix("backbone.body."): tensor for parameter, tensor in state.items()}
