"""Print the page of all options, made of the configuration's schema.

    python docs/options.py > docs/options.md

`make docs` does it before the site is built.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from dqdet.config import Config, describe, preset_names
from dqdet.config.families import TransformerConfig
from dqdet.config.section import Section

WORDS = {int: "whole number", float: "number", bool: "flag", str: "text", type(None): "`null`"}
HEAD = """# Every option

On the command line an option is `section.option=value`, in Python `section={"option": value}`. The defaults are here; a
preset sets what is other in its recipe, and `dqdet presets NAME` prints all options as they are there.
"""


def sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation allows, in its order."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for part in get_args(annotation) for section in sections(part)]


def values(annotation: Any) -> str:
    """What an option takes, in words; errors tell the bounds."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{code(value)}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(values(part) for part in parts))
    if origin is list:
        return f"list of {values(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} of {values(parts[0])}"
    return WORDS[annotation] if annotation in WORDS else values(parts[0])  # Annotated


def code(value: Any) -> str:
    """As YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]


def default(field: FieldInfo) -> str:
    return "" if field.is_required() else f"`{code(field.get_default())}`"


def own(section: type[Section]) -> dict[str, FieldInfo]:
    """The options of a section without those of sections in it."""
    return {name: field for name, field in section.model_fields.items() if not sections(field.annotation)}


def table(section: type[Section], names: Collection[str]) -> Iterator[str]:
    yield "| option | value | default | |"
    yield "| --- | --- | --- | --- |"
    for name in names:
        field = section.model_fields[name]
        cells = values(field.annotation), default(field), section.explanation(name)
        yield f"| `{name}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def described(path: str, kinds: list[type[Section]], level: int) -> Iterator[str]:
    """A section, of several kinds what they share first, then what each has beside it; and the sections in it."""
    common, choice = (TransformerConfig, "family") if path == "model" else (kinds[0], "kind")
    yield f"{'#' * level} `{path}`\n"
    yield from table(common, own(common))
    for kind in kinds:
        more = [name for name, field in own(kind).items() if name != choice and is_other(field, common, name)]
        if more:
            yield f"{'#' * (level + 1)} `{path}` with `{choice}={code(kind.model_fields[choice].default)}`\n"
            yield from table(kind, more)
    inside: dict[str, list[type[Section]]] = {}
    for kind in kinds:
        for name, field in kind.model_fields.items():
            inside.setdefault(name, []).extend(sections(field.annotation))
    for name, inner in inside.items():
        for number, section in enumerate(dict.fromkeys(inner)):
            heading = f"{path}.{name}"
            if number:
                yield f"{'#' * (level + 1)} `{heading}` of vision transformers\n"
                yield from table(section, own(section))
            else:
                yield from described(heading, [section], level + 1)


def is_other(field: FieldInfo, common: type[Section], name: str) -> bool:
    known = common.model_fields.get(name)
    return known is None or default(known) != default(field)


def page() -> Iterator[str]:
    yield HEAD
    yield "## Presets\n"
    yield "| preset | |"
    yield "| --- | --- |"
    for name in preset_names():
        yield f"| `{name}` | {describe(name)} |"
    yield "\n## Of the whole\n"
    yield from table(Config, own(Config))
    for name, field in Config.model_fields.items():
        if kinds := sections(field.annotation):
            yield from described(name, kinds, level=2)


if __name__ == "__main__":
    print("\n".join(page()))
