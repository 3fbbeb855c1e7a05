"""Where models of the ``transformers`` library have their queries, and where they let other ones in.

All of them hold their queries in tables whose ``.weight`` is read directly, so no hook sees that, and call their
decoder with named arguments. A :class:`Seam` says of a class which tables these are and which arguments are made of
them. What a class does beyond that, in `SEAMS`, is checked against the library by `check_seam`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dqdet.config import Context
from dqdet.errors import DqdetError
from dqdet.types import Queries

KNOWN = "5.17"  # the versions of the library that `SEAMS` is known to fit: this and its patches

Given = dict[str, Any]  # the arguments of a decoder, by name
Map = tuple[Tensor, Tensor]  # features [B, C, *cells] and their padding [B, *cells], True = padded


# Arguments of the library's losses of boxes that have queries, and the axis of these.
QUERY_AXES = {
    "logits": 1,
    "pred_boxes": 1,
    "pred_masks": 1,
    "text_mask": 1,
    "outputs_class": 2,
    "outputs_coord": 2,
    "outputs_masks": 1,  # a list over the decoder's layers
}
PROPOSALS = ("enc_outputs_class", "enc_outputs_coord", "enc_outputs_masks")  # [B, r * m, ...] in training


class Differently:
    """A configuration of which some options have another value, for a part of a model that shares it."""

    def __init__(self, config: Any, **options: Any):
        self.__dict__ |= {"of_model": config, **options}

    def __getattr__(self, option: str) -> Any:
        if option.startswith("__") or option == "of_model":  # asked of an object that is being copied
            raise AttributeError(option)
        return getattr(self.of_model, option)


def narrow(value: Any, axis: int | None, start: int, size: int) -> Any:
    """Some queries of tensors, in lists and dictionaries too; anything else as it is."""
    if axis is None:
        return value
    if isinstance(value, Tensor):
        return value.narrow(axis, start, size)
    if isinstance(value, list | tuple):
        return [narrow(item, axis, start, size) for item in value]
    if isinstance(value, Mapping):
        return {key: narrow(item, axis, start, size) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Seam:
    """Of one class of models."""

    tables: Mapping[str, Sequence[str]]  # of the reader: name -> parts of a query, equal shares of the table's columns
    give: Callable[[nn.Module, Queries, Given], Given]  # arguments of the reader's decoder that the queries replace
    # Arguments of that decoder which `give` replaces or reads.
    arguments: Sequence[str]
    # Maps that describe the image: module of the base model, and what to read of its output, ``[B, C, h, w]``.
    contexts: Mapping[Context, tuple[str, Callable[[Any], Tensor]]]
    memory: Callable[[Given], Map] | None  # the same from the decoder's arguments; None: `contexts` has it, or nothing
    channels: Callable[[Any], int]  # of the base model's coarsest backbone map
    hidden: Callable[[Any], int] = lambda config: config.hidden_size  # channels of the model's own maps
    base: str = "model"  # the module that is given images and their mask
    reader: str = ""  # the module of the base that reads the tables and calls its ``decoder``
    axis: int = 1  # of the queries, in what self-attention is given
    copies: Callable[[Any], int] = lambda config: 1  # queries of the decoder for each row of a table
    text: str | None = None  # attention of a decoder layer to text, whose mask has a row for every query
    scores: str | None = None  # module of the base that scores the encoder's proposals, then the queries
    # What a group's loss is given besides its outputs: from all arguments, the group's number and its size.
    of_group: Callable[[Given, int, int], Given] = lambda arguments, number, size: {}
    groups: bool = False  # the tables hold groups of queries, which become the basic ones
    refuse: Callable[[Any], str | None] = lambda config: None  # why a model with this configuration is not supported

    def base_of(self, model: nn.Module) -> Any:
        return module_at(model, self.base)

    def reader_of(self, model: nn.Module) -> Any:
        return module_at(self.base_of(model), self.reader)

    def layers_of(self, model: nn.Module) -> Any:
        return self.reader_of(model).decoder.layers

    def options(self, config: Any) -> dict[str, Any]:
        """The options of ``queries`` that a model decides itself, from its configuration."""
        return {"kind": "modulated", "basic": "groups", "ratio": config.group_detr} if self.groups else {}

    def groups_of(self, config: Any) -> int:
        """How many groups of queries the tables of a model hold, from its configuration."""
        return int(config.group_detr) if self.groups else 1


def module_at(module: Any, path: str) -> Any:
    """As ``get_submodule``, where ``-1`` is the last one of a list; raises AttributeError where there is none."""
    for name in filter(None, path.split(".")):
        module = module[-1] if name == "-1" else getattr(module, name)
    return module


def last_map(output: Any) -> Tensor:
    """The coarsest map of a backbone, ``[B, C, h, w]``: timm's are lists."""
    return getattr(output, "feature_maps", output)[-1]


def itself(output: Tensor) -> Tensor:
    return output


def dense(mask: str) -> Callable[[Given], Map]:
    """The memory of one map: tokens ``[B, S, c]``, and ``mask [B, S]``, True where there is image."""
    return lambda given: (given["encoder_hidden_states"].transpose(1, 2), ~given[mask].bool())


def coarsest(given: Given) -> Map:
    """The memory of several levels, one after the other: its last one."""
    height, width = given["spatial_shapes_list"][-1]
    tokens, mask = (given[name][:, -height * width :] for name in ("encoder_hidden_states", "encoder_attention_mask"))
    return tokens.transpose(1, 2), ~mask.bool()


def position(name: str) -> Callable[[nn.Module, Queries, Given], Given]:
    """A query is a position, and its content starts at zero."""

    def give(reader: nn.Module, queries: Queries, given: Given) -> Given:
        return {name: queries["position"], "inputs_embeds": torch.zeros_like(queries["position"])}

    return give


def anchor(reader: Any, queries: Queries, given: Given) -> Given:
    """A query is an anchor box before the sigmoid; every pattern starts from every anchor of a group."""
    boxes = queries["anchor"]  # [B, Q, 4]
    if reader.num_patterns == 0:
        content = boxes.new_zeros(*boxes.shape[:2], reader.hidden_size)
        return {"query_position_embeddings": boxes, "inputs_embeds": content}
    patterns, sizes = reader.patterns.weight, list(queries.groups.values())  # [P, c]
    content = torch.cat([patterns.repeat_interleave(size, 0) for size in sizes])  # [P * Q, c]
    boxes = torch.cat([part.repeat(1, len(patterns), 1) for part in boxes.split(sizes, 1)], 1)  # [B, P * Q, 4]
    return {"query_position_embeddings": boxes, "inputs_embeds": content.expand(len(boxes), -1, -1)}


def deformable(reader: Any, queries: Queries, given: Given) -> Given:
    """References are read from positions."""
    return {
        "inputs_embeds": queries["content"],
        "object_queries_position_embeddings": queries["position"],
        "reference_points": reader.reference_points(queries["position"]).sigmoid(),  # [B, Q, 2]
    }


def mask2former(reader: nn.Module, queries: Queries, given: Given) -> Given:
    """Queries come first: ``[Q, B, c]``."""
    return {
        "inputs_embeds": queries["content"].transpose(0, 1),
        "query_position_embeddings": queries["position"].transpose(0, 1),
    }


def proposals(reader: nn.Module, queries: Queries, given: Given) -> Given:
    """Content alone is combined: query i keeps proposal i, and in training so do all basic queries of its hull."""
    places, sizes = given["reference_points"], queries.groups.values()  # [B, m, 4]
    if len(sizes) == 1:
        return {"inputs_embeds": queries["content"]}
    rows = [torch.arange(size, device=places.device) * places.shape[1] // size for size in sizes]
    return {"inputs_embeds": queries["content"], "reference_points": places[:, torch.cat(rows)]}  # [B, Q, 4]


def encoder_once(arguments: Given, number: int, size: int) -> Given:
    """The part of the loss that is of the encoder counts for the first group."""
    return {} if number == 0 else {"config": Differently(arguments["config"], two_stage=False)}


def groups_of_proposals(reader: Any, queries: Queries, given: Given) -> Given:
    """Content and the change of a place are combined; the place of query i is proposal i of the first group.

    In training the basic queries are the groups of the model, each with proposals of its own. The library has changed
    these with a table of zeros, which leaves them as they were.
    """
    places, change = given["reference_points"], queries["change"]  # [B, m or r * m, 4], [B, m or m + r * m, 4]
    if len(queries.groups) > 1:
        places = torch.cat([places[:, : reader.num_queries], places], 1)  # [B, m + r * m, 4]
    refine = sys.modules[type(reader).__module__].refine_bboxes
    return {"inputs_embeds": queries["content"], "reference_points": refine(places, change)}


def own_proposals(arguments: Given, number: int, size: int) -> Given:
    """Each group of the model has proposals of its own; the queries of inference have those of the first."""
    start = max(number - 1, 0) * size
    proposed = {name: narrow(arguments[name], 1, start, size) for name in PROPOSALS if name in arguments}
    return proposed | {"config": Differently(arguments["config"], group_detr=1)}


RESNET = ("backbone.model", last_map)
NESTED_RESNET = ("backbone.conv_encoder.model", last_map)
PROJECTED = ("input_projection", itself)

PIXELS = ("pixel_level_module.encoder", last_map)


def positions(name: str, backbone: tuple[str, Callable], channels: Callable[[Any], int]) -> Seam:
    """Of DETR and what comes from it: learned positions, which the decoder knows as ``name``."""
    return Seam(
        tables={"query_position_embeddings": ["position"]},
        give=position(name),
        arguments=[name, "inputs_embeds", "encoder_hidden_states", "encoder_attention_mask"],
        contexts={"backbone": backbone, "projected": PROJECTED},
        memory=dense("encoder_attention_mask"),
        channels=channels,
    )


def flat(base: Any) -> int:
    return base.backbone.intermediate_channel_sizes[-1]


def nested(base: Any) -> int:
    return base.backbone.conv_encoder.intermediate_channel_sizes[-1]


def pixels(base: Any) -> int:
    return base.pixel_level_module.encoder.channels[-1]


DETR = positions("object_queries_position_embeddings", RESNET, flat)

LW_DETR = Seam(
    tables={"query_feat": ["content"], "reference_point_embed": ["change"]},
    give=groups_of_proposals,
    arguments=["inputs_embeds", "reference_points"],
    contexts={
        "backbone": ("backbone.backbone", last_map),
        "projected": ("backbone.projector", lambda maps: maps[-1]),
    },
    memory=None,  # what is projected is the memory
    channels=lambda base: base.backbone.backbone.channels[-1],
    hidden=lambda config: config.d_model,
    groups=True,
    of_group=own_proposals,
    refuse=lambda config: (
        "it has one group of queries (group_detr=1), and others would need proposals of their own: make them by "
        "`dqdet upgrade`, then dqdet.transformers.convert"
        if config.group_detr == 1
        else None
    ),
)

RF_DETR = replace(LW_DETR, contexts={**LW_DETR.contexts, "projected": ("backbone.projector", itself)})

GROUNDING_DINO = Seam(
    tables={"query_position_embeddings": ["content"]},
    give=proposals,
    arguments=["inputs_embeds", "reference_points"],
    contexts={"backbone": NESTED_RESNET, "projected": ("input_proj_vision.-1", itself)},
    memory=None,  # the queries are scored before
    channels=nested,
    text="encoder_attn_text",
    scores="encoder_output_class_embed",
    of_group=encoder_once,
    refuse=lambda config: (
        None
        if config.two_stage and config.embedding_init_target
        else "its queries come from the encoder (two_stage, embedding_init_target): there is no table to combine"
    ),
)

SEAMS: dict[str, Seam] = {
    "DetrForObjectDetection": DETR,
    "TableTransformerForObjectDetection": positions("query_position_embeddings", NESTED_RESNET, nested),
    "ConditionalDetrForObjectDetection": DETR,
    "DabDetrForObjectDetection": Seam(
        tables={"query_refpoint_embeddings": ["anchor"]},
        give=anchor,
        arguments=[
            "query_position_embeddings",
            "inputs_embeds",
            "encoder_hidden_states",
            "memory_key_padding_mask",
        ],
        contexts={"backbone": NESTED_RESNET, "projected": PROJECTED},
        memory=dense("memory_key_padding_mask"),
        channels=nested,
        copies=lambda config: max(config.num_patterns, 1),
    ),
    "DeformableDetrForObjectDetection": Seam(
        tables={"query_position_embeddings": ["position", "content"]},
        give=deformable,
        arguments=[
            "object_queries_position_embeddings",
            "inputs_embeds",
            "reference_points",
            "encoder_hidden_states",
            "encoder_attention_mask",
        ],
        contexts={"backbone": RESNET, "projected": ("input_proj.-1", itself)},
        memory=coarsest,
        channels=flat,
        refuse=lambda config: (
            "two_stage=True: its queries are made of the encoder's proposals, there is no table to combine"
            if config.two_stage
            else None
        ),
    ),
    "MaskFormerForInstanceSegmentation": Seam(
        tables={"queries_embedder": ["position"]},
        give=position("object_queries_position_embeddings"),
        arguments=["object_queries_position_embeddings", "inputs_embeds"],
        contexts={"backbone": PIXELS, "projected": ("transformer_module.input_projection", itself)},
        memory=None,  # its decoder reads the backbone
        channels=pixels,
        hidden=lambda config: config.decoder_config.hidden_size,
        reader="transformer_module",
    ),
    "Mask2FormerForUniversalSegmentation": Seam(
        tables={"queries_features": ["content"], "queries_embedder": ["position"]},
        give=mask2former,
        arguments=["inputs_embeds", "query_position_embeddings"],
        contexts={
            "backbone": PIXELS,
            "projected": ("pixel_level_module.decoder.input_projections.0", itself),
            "memory": ("pixel_level_module.decoder", lambda output: output.multi_scale_features[0]),
        },
        memory=None,
        channels=pixels,
        reader="transformer_module",
        axis=0,
    ),
    "LwDetrForObjectDetection": LW_DETR,
    "RfDetrForObjectDetection": RF_DETR,
    "RfDetrForInstanceSegmentation": replace(RF_DETR, base="model.model"),
    "GroundingDinoForObjectDetection": GROUNDING_DINO,
    "MMGroundingDinoForObjectDetection": GROUNDING_DINO,
}

FROM_ENCODER = "its queries are made of the encoder's proposals, there is no table to combine"

# Classes that have no table of queries to combine, or that make something else of the number of their queries.
UNSUPPORTED: dict[str, str] = {
    "DetrForSegmentation": "it makes masks for config.num_queries queries, so no further groups can train",
    "ConditionalDetrForSegmentation": "it makes masks for config.num_queries queries, so no further groups can train",
    "OneFormerForUniversalSegmentation": "its queries are made of the task's text and the image",
    "EomtForUniversalSegmentation": "its queries are tokens inside the image's transformer, there is no decoder",
    "YolosForObjectDetection": "its queries are tokens inside the image's transformer, there is no decoder",
    "Sam3Model": "its queries are prompted by text and share self-attention with a token that says what is there",
    "RTDetrForObjectDetection": FROM_ENCODER,
    "RTDetrV2ForObjectDetection": FROM_ENCODER,
    "DFineForObjectDetection": FROM_ENCODER,
}


def seam_of(model: transformers.PreTrainedModel) -> Seam:
    """The seam of a model's class.

    Raises:
        DqdetError: there is none, or the model's configuration has a variant without a table of queries.
    """
    name = type(model).__name__
    if name not in SEAMS:
        unknown = UNSUPPORTED.get(name, "dqdet does not know where its queries are")
        raise DqdetError(f"{name}: {unknown}; supported are {', '.join(SEAMS)}")
    if reason := SEAMS[name].refuse(model.config):
        raise DqdetError(f"{name}: {reason}")
    return SEAMS[name]


def check_seam(model: nn.Module, seam: Seam, context: Context) -> None:
    """Check that a model is as its seam says, and that it has the map that ``context`` names.

    Raises:
        DqdetError: the library has changed, or there is no such map.
    """
    if context != "none" and context not in seam.contexts and (context != "memory" or seam.memory is None):
        there = ", ".join([*seam.contexts, "none"])
        raise DqdetError(f"{type(model).__name__}: context={context}: it has no such map; there are {there}")

    def need(found: bool, what: str) -> None:
        if not found:
            raise DqdetError(
                f"{type(model).__name__} of transformers {transformers.__version__} has {what}; dqdet knows version "
                f"{KNOWN}: install that (pip install 'transformers=={KNOWN}.*')"
            )

    try:
        base, reader, layers = seam.base_of(model), seam.reader_of(model), seam.layers_of(model)
    except AttributeError as error:
        need(False, f"another structure ({error})")
    for table in seam.tables:
        need(isinstance(getattr(reader, table, None), nn.Embedding), f"no table {table} of queries")
    known = inspect.signature(type(reader.decoder).forward).parameters
    for argument in seam.arguments:
        need(argument in known, f"a decoder without the argument {argument}")
    need(all(hasattr(layer, "self_attn") for layer in layers), "decoder layers without self_attn")
    for path in (*(path for path, _ in seam.contexts.values()), *filter(None, [seam.scores])):
        try:
            module_at(base, path)
        except AttributeError:
            need(False, f"no {seam.base}.{path}")
    if seam.text is not None:
        need(all(hasattr(layer, seam.text) for layer in layers), f"decoder layers without {seam.text}")
