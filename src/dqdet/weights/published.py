"""What is known about a family's published weights, and what follows from it for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dqdet.config import Config, TransformerConfig, override, preset_names, resolve
from dqdet.errors import DqdetError
from dqdet.weights.backbones import recognise
from dqdet.weights.classes import COCO, Classes
from dqdet.weights.huggingface import HuggingFace, Theirs
from dqdet.weights.renaming import Rule, State, count_modules, fold_norms, merge_projections, rename

COEFFICIENTS = "queries.coefficients.0.weight"
MOST_CLASSES = 100_000
RATIO = 4  # basic queries behind each modulated one


@dataclass(frozen=True)
class Published:
    """One family's published weights."""

    config: type[TransformerConfig]
    sign: str  # official name of a parameter that no family before it in `dqdet.weights.PUBLISHED` has
    rules: Sequence[Rule]  # from the official names to ours
    prepare: Callable[[State], State] = lambda state: state  # changes official parameters before they are renamed
    # What our parameters, with so many heads, tell about the family's own options.
    options: Callable[[State, int], dict[str, Any]] = lambda state, heads: {}
    # Those that models were published with, by the number of outputs without "no object"; presets of all others, with
    # {} for the backbone (None: those named after the family).
    classes: Mapping[int, Classes] = field(default_factory=lambda: COCO)
    presets: str | None = None
    # Of the code with dynamic queries: options that other families have differently, and ratios that are not `RATIO`.
    dynamic: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, int] = field(default_factory=dict)
    huggingface: HuggingFace | None = None  # the family in ``transformers``, if it is there

    @property
    def family(self) -> str:
        return self.config.model_fields["family"].default

    def from_official(self, state: State) -> State:
        """Our parameters from an official state dict (the ``model`` entry of a checkpoint).

        Raises:
            DqdetError: if two different parameters become one of ours.
        """
        state = rename(self.prepare(state), self.rules)
        if COEFFICIENTS in state:  # queries are combined, and the same tables hold the basic ones
            state = rename(state, [(r"^queries\.table\.", "queries.basic.")])
        return fold_norms(merge_projections(state))

    def from_huggingface(self, state: State, theirs: Theirs) -> State:
        """Our parameters from the state dict of a model of ``transformers`` and its configuration; raises likewise."""
        assert self.huggingface is not None, f"transformers has no {self.family}"
        return self.from_official(self.huggingface.complete(rename(state, self.huggingface.rules), theirs))

    def describe(
        self, state: State, heads: int = 8, count: int | None = None, names: list[str] | None = None
    ) -> Config:
        """The configuration of the model that parameters (ours, after conversion) are of.

        Args:
            state: all parameters of the model.
            heads: of its attention; these leave no trace in parameters.
            count: of its queries at inference, if known. By default there are as many basic queries behind each
                modulated one as published.
            names: of its classes, if known. By default they are those of the data set that published models with so
                many outputs learned, or numbers.

        Raises:
            DqdetError: a parameter is missing, or the backbone is an unknown one.
        """
        try:
            backbone = recognise(state)
            head = "class_head.0.bias" if "class_head.0.bias" in state else "class_head.bias"
            outputs = len(state[head]) - self.config.no_object if names is None else len(names)
            if outputs > MOST_CLASSES:
                raise DqdetError(f"has {outputs} classes, more than {MOST_CLASSES}")
            labels = {"classes": names or [f"class {label}" for label in range(outputs)]}
            presets = self.presets or self.family + "_{}"
            learned = self.classes.get(outputs)
            if learned is not None and (names is None or learned.are(names)):
                labels = learned.options | ({} if names is None else labels)
                presets = learned.presets or presets
            name = presets.format(backbone)
            config = resolve(name if name in preset_names() else presets.format("r50"))
            options = {
                "model.backbone.name": backbone,
                "model.hidden": len(state["decoder.0.norm1.weight"]),
                "model.heads": heads,
                "model.encoder_layers": count_modules(state, "encoder.layers."),
                "model.decoder_layers": count_modules(state, "decoder."),
                "model.feedforward": len(state["decoder.0.feedforward.linear1.bias"]),
                **self.options(state, heads),
                **self._queries(state, self.ratios.get(config.data.task, RATIO), count),
                **labels,
            }
        except KeyError as error:
            raise DqdetError(f"looks like {self.family}, but has no {error.args[0]}") from error
        return override(config, options)

    def _queries(self, state: State, ratio: int, count: int | None) -> dict[str, Any]:
        tables = [table for name, table in state.items() if name.startswith(("queries.table.", "queries.basic."))]
        if COEFFICIENTS not in state or not tables:
            count = len(tables[0]) if tables else count  # without tables the encoder proposes as many as wanted
            return {"queries.kind": "static"} | ({} if count is None else {"queries.count": count})
        basic = len(tables[0])
        count = count or basic // (RATIO if basic % ratio else ratio)
        return {  # as the code with dynamic queries was published
            "queries.kind": "modulated",
            "queries.count": count,
            "queries.ratio": basic // count,
            "queries.hidden": len(state[COEFFICIENTS]),
            "queries.context": self.config.published_context,
            "queries.pool": "max",
            "queries.pool_padding": True,
            "queries.coefficients": "raw",
            **self.dynamic,
        }
