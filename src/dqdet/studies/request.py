"""What is asked of a study: where, how often, and of which models and data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from dqdet.config import Config, as_words, parse_overrides, resolve
from dqdet.config.length import DROPS, LENGTH
from dqdet.errors import DqdetError

Labelled = TypeVar("Labelled")


@dataclass(frozen=True)
class Request:
    """The words of the command line; see `dqdet.studies.study`."""

    name: str
    out: Path
    seeds: int | None
    jobs: int | None
    preset: str | None
    model: str | None
    only: tuple[str, ...]
    report: bool
    overrides: Mapping[str, Any]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        for word, number in (("seeds", self.seeds), ("jobs", self.jobs)):
            if number is not None and number < 1:
                raise DqdetError(f"{word}={number}: should be 1 or more")

    def chosen(self, entries: Mapping[str, Labelled]) -> dict[str, Labelled]:
        """Those whose labels ``only`` names; all, if it names none of them."""
        return {label: entry for label, entry in entries.items() if label in self.only} or dict(entries)

    def check_labels(self, known: Iterable[str]) -> None:
        """Raise DqdetError unless all labels of ``only`` are among those of models and queries."""
        known = list(dict.fromkeys(known))
        for label in self.only:
            if label not in known:
                nearest = get_close_matches(label, known, n=1, cutoff=0.4)
                suggestion = f", did you mean {nearest[0]}?" if nearest else ""
                raise DqdetError(f"only={label}: not in this study{suggestion}; there are: {', '.join(known)}")

    def command(self) -> str:
        """The command line that runs the study again."""
        words: list[str] = ["dqdet", "study", self.name]
        if self.seeds is not None:
            words += ["--seeds", str(self.seeds)]
        if self.preset is not None:
            words += ["--preset", self.preset]
        if self.model is not None:
            words += ["--model", self.model]
        for label in self.only:
            words += ["--only", label]
        words += as_words(parse_overrides(self.overrides))
        return shlex.join([*words, "--out", f"runs/{self.name}"])


@dataclass(frozen=True)
class Subject:
    """A model that a study trains: a preset with options, and the published preset whose numbers the paper has."""

    preset: str
    options: Mapping[str, Any]
    published: str

    def config(self, *overrides: Mapping[str, Any]) -> Config:
        return resolve(self.preset, self.merged(*overrides))

    def merged(self, *overrides: Mapping[str, Any]) -> dict[str, Any]:
        """All options with dotted names; later ones win, and a length takes the place of a length with its drops."""
        merged: dict[str, Any] = {}
        for options in (self.options, *overrides):
            given = parse_overrides(options)
            if any(path in given for path in LENGTH):
                merged = {path: value for path, value in merged.items() if path not in (*LENGTH, *DROPS)}
            merged |= given
        return merged


def subjects(request: Request, own: Mapping[str, Subject]) -> dict[str, Subject]:
    """What is trained, by label: the study's own small models, or the preset that was asked for."""
    if request.preset is not None:
        return {request.preset: Subject(request.preset, {}, request.preset)}
    return dict(own)
