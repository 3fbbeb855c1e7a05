"""DINO: the code of its authors."""

from typing import Any

from dqdet.config import DinoConfig
from dqdet.weights import deformable_detr
from dqdet.weights.backbones import DETECTRON2_SWIN
from dqdet.weights.published import Published
from dqdet.weights.renaming import State

LABELS = "label_enc.weight"  # of denoising queries


def without_unused_labels(state: State) -> State:
    """The published table of labels has one row more than there are classes, which is never read."""
    return state | {LABELS: state[LABELS][: len(state["class_embed.0.bias"])]} if LABELS in state else state


def options(state: State, heads: int) -> dict[str, Any]:
    # A convolution of 1x1 for each map of the backbone, and of 3x3 beyond.
    maps = sum(name.startswith("input_proj.") and tensor.shape[2:] == (1, 1) for name, tensor in state.items())
    return {
        **deformable_detr.levels_and_points(state, heads),
        "model.finest": 32 // 2 ** (maps - 1),
        **({} if "denoising.labels" in state else {"queries.denoising": 0}),
    }


DINO = Published(
    config=DinoConfig,
    sign="transformer.tgt_embed.weight",
    rules=[
        *((rf"^backbone\.0\.norm{stage + 1}\.", f"backbone.norms.{stage}.") for stage in range(3)),
        (r"^backbone\.0\.(?=layers\.|patch_embed\.)", "backbone."),
        *DETECTRON2_SWIN,
        *deformable_detr.RULES,
        (r"^(class|box)_head\.\d+\.", r"\1_head."),  # all layers share them
        (r"^enc_out_class_embed\.", "proposal_class_head."),
        (r"^enc_out_bbox_embed\.", "proposal_box_head."),
        (r"^decoder\.ref_point_head\.", "position_head."),
        (r"^tgt_embed\.weight$", "queries.table.content"),
        (r"^label_enc\.weight$", "denoising.labels"),
    ],
    prepare=without_unused_labels,
    options=options,
)
