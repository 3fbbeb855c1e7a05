"""Parameter names of Mask2Former's implementation on detectron2."""

from __future__ import annotations

import re

from dqdet.weights.official import DYNAMIC
from dqdet.weights.renaming import Rule, State, fold_norms, rename

# ResNets become torchvision's.
RESNET: list[Rule] = [
    (r"^backbone\.stem\.", "backbone.body."),
    (r"^backbone\.res2\.", "backbone.body.layer1."),
    (r"^backbone\.res3\.", "backbone.body.layer2."),
    (r"^backbone\.res4\.", "backbone.body.layer3."),
    (r"^backbone\.res5\.", "backbone.body.layer4."),
    (r"^(backbone\..*)\bconv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\..*)\bshortcut\.norm\.", r"\1downsample.1."),
    (r"^(backbone\..*)\bshortcut\.", r"\1downsample.0."),
]

# Swin transformers become timm's, where each stage begins with the step down that ended the one before.
SWIN: list[Rule] = [
    (r"^backbone\.norm(\d)\.", r"backbone.norms.\1."),
    (r"^backbone\.layers\.0\.downsample\.", "backbone.body.layers_1.downsample."),
    (r"^backbone\.layers\.1\.downsample\.", "backbone.body.layers_2.downsample."),
    (r"^backbone\.layers\.2\.downsample\.", "backbone.body.layers_3.downsample."),
    (r"^backbone\.layers\.(\d)\.", r"backbone.body.layers_\1."),
    (r"^backbone\.patch_embed\.", "backbone.body.patch_embed."),
]

# Older files have the pixel decoder directly in the head.
PIXEL_DECODER: list[Rule] = [
    (r"^sem_seg_head\.(?!predictor\.)(?:pixel_decoder\.)?", "pixel_decoder."),
    (r"^pixel_decoder\.transformer\.(?:encoder\.)?", "pixel_decoder.encoder."),
    (r"^(pixel_decoder\.encoder\..*)\.(linear[12])\.", r"\1.feedforward.\2."),
    (r"^(pixel_decoder\.encoder\..*)\.norm2\.", r"\1.feedforward.norm."),
    (r"^pixel_decoder\.adapter_1\.norm\.", "pixel_decoder.lateral.1."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral.0."),
    (r"^pixel_decoder\.layer_1\.norm\.", "pixel_decoder.output.1."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.output.0."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_proj."),
]

DECODER: list[Rule] = [
    (r"^sem_seg_head\.predictor\.", ""),
    (r"^transformer_cross_attention_layers\.(\d+)\.norm\.", r"decoder.\1.norm1."),
    (r"^transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r"decoder.\1.cross_attn."),
    (r"^transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.\1.norm2."),
    (r"^transformer_self_attention_layers\.(\d+)\.self_attn\.", r"decoder.\1.self_attn."),
    (r"^transformer_ffn_layers\.(\d+)\.", r"decoder.\1.feedforward."),
    (r"^decoder_norm\.", "norm."),
    (r"^class_embed\.", "class_head."),
    (r"^mask_embed\.", "mask_head."),
    (r"^level_embed\.weight$", "level_embed"),
    (r"^(?:query_feat|static_query)\.weight$", "queries.table.content"),
    (r"^query_embed\.weight$", "queries.table.position"),
    (r"^query_weight\.", "queries.coefficients."),
]

# Class weights of the loss, which are a part of its configuration here, and indices that follow from the window.
UNUSED = re.compile(r"^criterion\.empty_weight$|\.relative_position_index$")


def from_detectron2(state: State) -> State:
    """Our parameters from the state dict (the ``model`` entry of a checkpoint) of Mask2Former.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    state = {name: tensor for name, tensor in state.items() if not UNUSED.search(name)}
    rules = [*RESNET, *SWIN, *PIXEL_DECODER, *DECODER]
    if "sem_seg_head.predictor.query_weight.0.weight" in state:
        rules += DYNAMIC
    return fold_norms(rename(state, rules))
