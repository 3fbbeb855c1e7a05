"""Small random models of the ``transformers`` library, and what they are trained on."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import ResNetConfig

QUERIES, CLASSES = 6, 5
SIZES = [(96, 128), (96, 90)]  # height, width
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SHAPE: dict[str, Any] = {
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
    "auxiliary_loss": True,
}
MASKED = ("MaskFormerForInstanceSegmentation", "Mask2FormerForUniversalSegmentation")  # losses of masks alone


def resnet(stages: list[str]) -> dict[str, Any]:
    config = ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20], embedding_size=8, layer_type="basic", out_features=stages
    )
    return {"backbone_config": config}


def lw_detr() -> Any:
    vit = transformers.LwDetrViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        window_block_indices=[0, 2],
        num_windows=4,
        out_indices=[1, 3],
        dropout_prob=0.0,
    )
    return transformers.LwDetrConfig(
        backbone_config=vit,
        projector_scale_factors=[1.0],
        num_queries=QUERIES,
        group_detr=3,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=24,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=4,
        num_labels=CLASSES,
        dropout=0.0,
    )


def rf_detr() -> Any:
    vit = transformers.RfDetrDinov2Config(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_windows=2,
        window_block_indexes=[0, 2],
        out_indices=[1, 3],
    )
    return transformers.RfDetrConfig(
        backbone_config=vit,
        num_queries=QUERIES,
        group_detr=3,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=24,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=4,
        num_labels=CLASSES,
        dropout=0.0,
        mask_point_sample_ratio=4,  # of the number of queries: the library's matcher takes their boxes for masks
    )


def mask_former() -> Any:
    decoder = {name: value for name, value in SHAPE.items() if name != "num_labels"}
    return transformers.MaskFormerConfig(
        **resnet(STAGES),
        decoder_config=transformers.DetrConfig(**decoder | {"auxiliary_loss": False}, **resnet(STAGES)),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=CLASSES,
        output_auxiliary_logits=True,
    )


def mask2former() -> Any:
    return transformers.Mask2FormerConfig(
        **resnet(STAGES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        num_attention_heads=4,
        encoder_feedforward_dim=24,
        dim_feedforward=24,
        encoder_layers=1,
        decoder_layers=4,
        num_queries=QUERIES,
        num_labels=CLASSES,
        dropout=0.0,
        output_auxiliary_logits=True,
    )


def grounding_dino(kind: type) -> Any:
    text = transformers.BertConfig(
        vocab_size=2000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return kind(
        **SHAPE, **resnet(STAGES[1:]), text_config=text, max_text_len=16, text_enhancer_dropout=0.0, fusion_dropout=0.0,
        fusion_droppath=0.0, disable_custom_kernels=True, num_feature_levels=3,
    )  # fmt: skip


def detr_like(kind: type, stages: list[str] = STAGES[-1:], **options: Any) -> Any:
    return kind(**SHAPE | options, **resnet(stages))


CONFIGS = {
    "DetrForObjectDetection": lambda: detr_like(transformers.DetrConfig),
    "TableTransformerForObjectDetection": lambda: detr_like(transformers.TableTransformerConfig),
    "ConditionalDetrForObjectDetection": lambda: detr_like(transformers.ConditionalDetrConfig),
    "DabDetrForObjectDetection": lambda: detr_like(transformers.DabDetrConfig, hidden_size=32),
    "DabDetrForObjectDetection with patterns": lambda: detr_like(
        transformers.DabDetrConfig, hidden_size=32, num_patterns=2
    ),
    "DeformableDetrForObjectDetection": lambda: detr_like(
        transformers.DeformableDetrConfig, STAGES[1:], disable_custom_kernels=True
    ),
    "DeformableDetrForObjectDetection with refinement": lambda: detr_like(
        transformers.DeformableDetrConfig, STAGES[1:], disable_custom_kernels=True, with_box_refine=True
    ),
    "MaskFormerForInstanceSegmentation": mask_former,
    "Mask2FormerForUniversalSegmentation": mask2former,
    "LwDetrForObjectDetection": lw_detr,
    "RfDetrForObjectDetection": rf_detr,
    "RfDetrForInstanceSegmentation": rf_detr,
    "GroundingDinoForObjectDetection": lambda: grounding_dino(transformers.GroundingDinoConfig),
    "MMGroundingDinoForObjectDetection": lambda: grounding_dino(transformers.MMGroundingDinoConfig),
}


def build(name: str, **options: Any) -> nn.Module:
    """A model whose parameters are away from initial values that hide mistakes: zeros, and heads that are all equal."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for option, value in options.items():
        setattr(config, option, value)
    model = getattr(transformers, name.split()[0])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def inputs(model: nn.Module, images: int = 2) -> dict[str, Any]:
    """Images of ``SIZES``, padded, their masks, and text where the model reads that."""
    generator = torch.Generator().manual_seed(1)
    square = type(model).__name__.removeprefix("Modulated").startswith(("LwDetr", "RfDetr"))
    sizes = [(64, 64), (64, 64)] if square else SIZES
    height, width = sizes[0]
    pixels = torch.zeros(2, 3, height, width)
    mask = torch.zeros(2, height, width, dtype=torch.long)
    for number, (h, w) in enumerate(sizes):
        pixels[number, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[number, :h, :w] = 1
    given = {"pixel_values": pixels, "pixel_mask": mask}
    if "Grounding" in type(model).__name__:
        words = torch.tensor(
            [[101, 500, 1012, 501, 502, 1012, 102], [101, 503, 1012, 504, 1012, 102, 0]]
        )  # a. b c. / d. e.
        given |= {"input_ids": words, "attention_mask": (words != 0).long()}
    return {name: value[:images] for name, value in given.items()}


def targets(model: nn.Module, images: int = 2) -> dict[str, Any]:
    """Two objects in the first image, one in the second."""
    generator = torch.Generator().manual_seed(2)
    height, width = inputs(model)["pixel_values"].shape[2:]
    labels: list[dict[str, Tensor]] = []
    for classes in ([1, 0], [1]):
        masks = torch.zeros(len(classes), height, width)
        for number, masked in enumerate(masks):
            masked[10 + 20 * number : 40 + 10 * number, 8 + 10 * number : 50] = 1
        boxes = torch.rand(len(classes), 4, generator=generator) * 0.3 + 0.2
        labels.append({"class_labels": torch.tensor(classes), "boxes": boxes, "masks": masks})
    if type(model).__name__.removeprefix("Modulated") in MASKED:
        return {name: [label[key] for label in labels[:images]] for name, key in MASK_LABELS.items()}
    return {"labels": labels[:images]}


MASK_LABELS = {"mask_labels": "masks", "class_labels": "class_labels"}
OUTPUTS = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits", "encoder_logits")


def outputs(found: Any) -> dict[str, Tensor]:
    """What a model has found, by name, ``[B, Q, ...]``."""
    return {name: found[name] for name in OUTPUTS if found.get(name) is not None}
