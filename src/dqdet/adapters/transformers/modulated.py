"""What a class of ``transformers`` becomes: the same class with queries from `dqdet.queries`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dqdet.adapters.transformers.seams import (
    QUERY_AXES,
    SEAMS,
    Differently,
    Given,
    Seam,
    check_seam,
    module_at,
    narrow,
)
from dqdet.config import QueriesConfig
from dqdet.errors import DqdetError
from dqdet.losses.set_loss import group_weights
from dqdet.nn.padding import resize_padding
from dqdet.queries import QuerySource, make_queries
from dqdet.types import Queries

PREFIX = "Modulated"  # of the names of the classes made here


@dataclass(frozen=True)
class Group:
    """Queries that train together, and see no others."""

    start: int
    size: int
    suffix: str  # of the names of its terms of the loss
    weight: float  # of its loss


class Modulated(transformers.PreTrainedModel):
    """Mixed into a class that `SEAMS` has: its queries come from ``self.queries``, in training in several groups.

    ``config.modulated`` has the options of `QueriesConfig` and ``beta``, the weight of the basic queries' loss (Eq. 7).
    In training mode outputs have the queries of all groups, the first ``config.modulated["count"]`` being those of
    inference; ``auxiliary_outputs`` are of these alone. ``loss`` is that of the class for each group: L(first) + beta *
    mean of L(other groups), and ``loss_dict`` names the terms of the others after their group.
    """

    queries: QuerySource

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if not isinstance(getattr(config, "modulated", None), dict):
            name = type(self).__name__
            raise DqdetError(f"{name}: its configuration has no 'modulated'; make a {name} with dqdet.modulate(model)")
        self._take_over()

    def _take_over(self) -> None:
        """Put the source of queries in the place of the class's own, as ``config.modulated`` says."""
        seam, options = self._seam, dict(self.config.modulated)
        beta = options.pop("beta")
        queries = QueriesConfig(**options)
        check_seam(self, seam, queries.context)
        base, reader = seam.base_of(self), seam.reader_of(self)
        tables = {name: getattr(reader, name).weight for name in seam.tables}
        widths = {part: tables[name].shape[1] // len(parts) for name, parts in seam.tables.items() for part in parts}
        hidden = seam.hidden(self.config)
        self.queries = make_queries(queries, widths, backbone=seam.channels(base), hidden=hidden).train(self.training)
        for name, weight in tables.items():
            self.queries.to(weight.device, weight.dtype)
            setattr(reader, name, Nothing(weight))

        self._groups = groups_of(self.queries, queries.count, seam.copies(self.config), beta)
        for layer in seam.layers_of(self):
            layer.self_attn.__class__ = in_groups(layer.self_attn.__class__)
            layer.self_attn.sizes, layer.self_attn.axis = [group.size for group in self._groups], seam.axis
            if seam.groups:
                layer.self_attn.config = Differently(self.config, group_detr=1)
            if seam.text is not None:
                getattr(layer, seam.text).register_forward_pre_hook(one_row, with_kwargs=True)
        self._padding: Tensor | None = None
        self._made: Queries | None = None
        self._places: Tensor | None = None
        self._scored = False
        base.register_forward_pre_hook(self._see_mask, with_kwargs=True)
        if self.queries.context in seam.contexts:
            path, _ = seam.contexts[self.queries.context]
            module_at(base, path).register_forward_hook(self._see_map)
        reader.decoder.register_forward_pre_hook(self._give, with_kwargs=True)
        if seam.scores is not None:
            module_at(base, seam.scores).register_forward_pre_hook(self._score)
        if "reference_points" in seam.arguments:
            base.register_forward_hook(self._tell_places)

    @property
    def _seam(self) -> Seam:
        return SEAMS[type(self).__name__.removeprefix(PREFIX)]

    def _see_mask(self, base: nn.Module, args: tuple, kwargs: Given) -> None:
        """Keep the padding of the images, ``[B, H, W]``."""
        mask = kwargs["pixel_mask"] if "pixel_mask" in kwargs else args[1] if len(args) > 1 else None
        self._padding = None if mask is None else ~mask.bool()
        self._made, self._scored = None, False

    def _see_map(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Make the queries from the map that describes the images, ``[B, C, h, w]``."""
        features = self._seam.contexts[self.queries.context][1](output)
        if self._padding is None:
            padding = torch.zeros_like(features[:, 0], dtype=torch.bool)  # [B, h, w]
        else:
            padding = resize_padding(self._padding, features)
        self._made = self.queries(features, padding)

    def _score(self, head: nn.Module, args: tuple) -> tuple:
        """The class scores the encoder's proposals first, then its queries: here those of inference, ``[B, m, c]``."""
        if self._scored and self._made is not None:
            args = (self._made["content"][:, : self._groups[0].size], *args[1:])
        self._scored = True
        return args

    def _give(self, decoder: nn.Module, args: tuple, kwargs: Given) -> tuple[tuple, Given]:
        """Give the decoder these queries in the place of the class's own."""
        seam = self._seam
        if kwargs.get("attention_mask") is not None:
            raise DqdetError(f"{type(self).__name__}: queries cannot be masked (decoder_attention_mask)")
        if self.queries.context not in seam.contexts and seam.memory is not None:
            self._made = self.queries(*seam.memory(kwargs))
        if self._made is None:
            raise DqdetError(f"{type(self).__name__}: queries are made of images; give pixel_values, no inputs_embeds")
        made, self._made, self._padding = self._made, None, None
        given = seam.give(seam.reader_of(self), made, kwargs)
        self._places = given.get("reference_points")
        return args, kwargs | given

    def _tell_places(self, base: nn.Module, args: tuple, output: Any) -> Any:
        """The head reads where the queries start from the output of the base model."""
        places, self._places = self._places, None
        if places is None:  # the encoder's, which it knows
            return output
        if isinstance(output, tuple):
            raise DqdetError(f"{type(self).__name__}: leave return_dict=True, its head needs names of outputs")
        output.init_reference_points = places
        return output

    @property
    def loss_function(self) -> Any:
        """The class's loss (or the one that was set), for each group of queries."""
        return self._loss_of_groups

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        self._loss_function = value

    def _groups_in(self, outputs: Tensor) -> list[Group]:
        """Whose outputs these are, ``[B, Q, ...]``: of all groups in training, of the first in inference."""
        return self._groups if outputs.shape[1] > self._groups[0].size else self._groups[:1]

    def _loss_of_groups(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
        loss = super().loss_function
        arguments = inspect.signature(loss).bind(*args, **kwargs).arguments
        groups = self._groups_in(arguments["logits"])
        if len(groups) == 1:
            return loss(*args, **kwargs)
        found = []
        for number, group in enumerate(groups):
            given = {name: narrow(x, QUERY_AXES.get(name), group.start, group.size) for name, x in arguments.items()}
            found.append(loss(**given | self._seam.of_group(arguments, number, group.size)))
        totals, of_groups, auxiliary = zip(*found, strict=True)
        total = torch.stack([group.weight * value for group, value in zip(groups, totals, strict=True)]).sum(0)
        return total, named(groups, of_groups), auxiliary[0]

    def _replicate_for_data_parallel(self) -> Any:
        raise DqdetError(
            "torch.nn.DataParallel copies models without what makes their queries; start one process a GPU "
            "(accelerate launch, torchrun), or show one GPU only (CUDA_VISIBLE_DEVICES=0)"
        )


class ModulatedMasks(Modulated):
    """The same for classes whose loss is of masks, in ``get_loss_dict``."""

    def get_loss_dict(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Any,
        class_labels: Any,
        *last,
        **aux,
    ) -> dict[str, Tensor]:
        """Terms of all groups; those of the others are named after their group and have their weight."""
        (auxiliary,) = (*last, *aux.values())  # a list over the decoder's layers, by another name in each class
        outputs = [masks_queries_logits, class_queries_logits, auxiliary]
        groups = self._groups_in(masks_queries_logits)
        found = []
        for group in groups:
            masks, classes, layers = narrow(outputs, 1, group.start, group.size)
            terms = super().get_loss_dict(masks, classes, mask_labels, class_labels, layers)  # type: ignore[misc]
            found.append({name: group.weight * value for name, value in terms.items()})
        return named(groups, found)


def named(groups: Sequence[Group], found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The terms of all groups in one, by names that tell them apart."""
    return {
        name + group.suffix: value for group, terms in zip(groups, found, strict=True) for name, value in terms.items()
    }


class Nothing(nn.Module):
    """In the place of a table of queries: the class reads a weight here, and what it makes of it is replaced."""

    like: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("like", weight.new_empty(0), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Zeros of the table's shape, where the model is and of its type."""
        return self.like.new_zeros(self.shape)


class InGroups(nn.Module):
    """Mixed into a class of self-attention: queries see their own group only, in one pass for each."""

    sizes: list[int]  # of the groups in training
    axis: int  # of the queries, in all that it is given

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        count = next(x.shape[self.axis] for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if count == self.sizes[0]:  # those of inference
            return super().forward(*args, **kwargs)
        start, found = 0, []
        for size in self.sizes:
            of_group = narrow([list(args), kwargs], self.axis, start, size)
            found.append(super().forward(*of_group[0], **of_group[1]))
            start += size
        return torch.cat([mixed for mixed, *_ in found], self.axis), *found[0][1:]  # weights: of the first group

    def __reduce__(self) -> tuple:
        return _empty_in_groups, (type(self).__bases__[1],), self.__dict__


def _empty_in_groups(attention: Any) -> nn.Module:
    """To be filled when it is copied or unpickled; its class has no name that could be imported."""
    kind = in_groups(attention)
    return kind.__new__(kind)


@cache
def in_groups(attention: Any) -> Any:
    """A class of self-attention whose queries see their own group only. Parameters keep their names."""
    if issubclass(attention, InGroups):
        return attention
    return type(f"{attention.__name__}InGroups", (InGroups, attention), {"__module__": __name__})


@cache
def modulated(model: Any) -> Any:
    """The modulated class of a class of models, e.g. ``ModulatedDetrForObjectDetection``."""
    mixed = ModulatedMasks if hasattr(model, "get_loss_dict") else Modulated
    module = __name__.rpartition(".")[0]
    return type(f"{PREFIX}{model.__name__}", (mixed, model), {"__module__": module})


def one_row(attention: nn.Module, args: tuple, kwargs: Given) -> tuple[tuple, Given]:
    """A mask of text that is the same for all queries, for any number of them: ``[B, heads, 1, T]``."""
    mask = kwargs["attention_mask"]  # [B, heads, config.num_queries, T]
    return args, kwargs | {"attention_mask": None if mask is None else mask[:, :, :1]}


def groups_of(source: QuerySource, count: int, copies: int, beta: float | None) -> list[Group]:
    """The groups of queries that a source makes in training, that of inference first.

    Args:
        source: of queries.
        count: m.
        copies: queries of the decoder for each one of the source.
        beta: of `group_weights`.
    """
    others = source.training_sizes()
    first, share = group_weights(1 + len(others), beta)
    groups = [Group(0, copies * count, "", first)]
    for number, size in enumerate(others, 1):
        start = groups[-1].start + groups[-1].size
        suffix = "_basic" if len(others) == 1 else f"_basic_{number}"
        groups.append(Group(start, copies * size, suffix, share))
    return groups
