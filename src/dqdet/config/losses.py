"""Options of matching and set losses, by default the published ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from dqdet.config.section import Classification, Count, NonNegative, Real, Section, Share, Whole


class LossConfig(Section):
    """Set loss of boxes: matching costs, weights and normalisation (``losses/set_loss.py``)."""

    kind: Literal["boxes"] = "boxes"
    """Kind of loss; the family's own."""
    classification: Classification = "focal"
    """Loss of the class scores: cross_entropy needs an output for no object; iou_aware is LW-DETR's."""
    class_cost: NonNegative = 2.0
    """Weight of the class scores in the matching."""
    box_cost: NonNegative = 5.0
    """Weight of the L1 distance of boxes in the matching."""
    giou_cost: NonNegative = 2.0
    """Weight of the generalised IoU of boxes in the matching."""
    class_weight: NonNegative = 2.0
    """Weight of the classification loss."""
    box_weight: NonNegative = 5.0
    """Weight of the L1 loss of boxes."""
    giou_weight: NonNegative = 2.0
    """Weight of the generalised IoU loss of boxes."""
    no_object_weight: NonNegative = 0.1
    """Weight of unmatched queries in the cross-entropy; no effect on other losses of classes."""
    box_epsilon: NonNegative = 0.0
    """Added to both denominators of the generalised IoU, in loss and matching."""
    beta: NonNegative | None = 1.0
    """Weight of the basic queries' loss (Eq. 7); 0: they do not train by themselves; null: the mean over all groups."""


class MaskLossConfig(Section):
    """Set loss of masks, compared at points (``losses/masks.py``). Costs of the matching have the same weights."""

    kind: Literal["masks"] = "masks"
    """Kind of loss; the family's own."""
    class_weight: NonNegative = 2.0
    """Weight of the classification loss, and of the class scores in the matching."""
    mask_weight: NonNegative = 5.0
    """Weight of the binary cross-entropy of masks, in the loss and in the matching."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks, in the loss and in the matching."""
    no_object_weight: NonNegative = 0.1
    """Weight of unmatched queries in the classification loss."""
    points: Annotated[Whole, Field(gt=0, le=2**24)] = 12544
    """Points at which each mask is compared."""
    oversample: Annotated[Real, Field(ge=1, le=100)] = 3.0
    """Candidates drawn for each point of the loss."""
    important: Share = 0.75
    """Share of the points that are the least certain candidates; the others are drawn evenly."""
    beta: NonNegative = 1.0
    """Weight of the basic queries' loss (Eq. 7); 0: they do not train by themselves."""


class InstanceLossConfig(LossConfig):
    """Set loss of boxes with masks (``losses/instances.py``). Costs of the masks have the same weights."""

    kind: Literal["instances"] = "instances"  # type: ignore[assignment]
    mask_weight: NonNegative = 5.0
    """Weight of the binary cross-entropy of masks."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks."""
    cells_a_point: Count = 16
    """Cells of a mask for each point at which it is compared."""


class SequenceLossConfig(LossConfig):
    """Set loss of sequences of boxes, with the masks of matched queries (``losses/sequences.py``)."""

    kind: Literal["sequences"] = "sequences"  # type: ignore[assignment]
    classification: Literal["focal"] = "focal"
    mask_weight: NonNegative = 2.0
    """Weight of the focal loss of masks."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks."""


def _loss_kind(options: Any) -> str:
    kind = options.get("kind", "boxes") if isinstance(options, dict) else getattr(options, "kind", None)
    return kind if isinstance(kind, str) else ""


AnyLossConfig = Annotated[
    Annotated[LossConfig, Tag("boxes")]
    | Annotated[MaskLossConfig, Tag("masks")]
    | Annotated[InstanceLossConfig, Tag("instances")]
    | Annotated[SequenceLossConfig, Tag("sequences")],
    Discriminator(_loss_kind),
]
