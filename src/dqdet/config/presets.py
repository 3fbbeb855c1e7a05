"""How presets and ``key=value`` overrides make a configuration, and its form as YAML."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dqdet.config.length import DROPS, LENGTH, moved_drops, without_the_other
from dqdet.config.schema import Config
from dqdet.config.section import Section
from dqdet.errors import NOT_YAML, DqdetError, listed, printable, value_text

logger = logging.getLogger(__name__)

Overrides = Iterable[str] | Mapping[str, Any]  # ["train.epochs=12"], or {"train.epochs": 12}, nested or not

FILES = (".yaml", ".yml")  # of configurations, where the name of a preset is expected
FIXED = ("preset", "model.family")  # what a preset is; another one is chosen by its name


def preset_names() -> list[str]:
    entries = files("dqdet").joinpath("presets").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.is_file())


def describe(name: str) -> str:
    """What a preset is, in one line."""
    return _read_preset(name)["description"]


def for_trained_weights(name: str) -> bool:
    """Whether a preset is made for a training that starts from weights."""
    options = _read_preset(name)
    return options.get("recipe") == "finetune" or ("extends" in options and for_trained_weights(options["extends"]))


def resolve(name: str | Path, overrides: Overrides = ()) -> Config:
    """The configuration of a preset with overrides.

    Args:
        name: of a preset, or the path of a ``.yaml`` file: a whole configuration, such as the ``config.yaml`` of a run
            or what ``dqdet presets NAME`` prints, or ``extends: NAME`` with what differs from that preset.
        overrides: of its options.

    Raises:
        DqdetError: unknown preset or option, value of a wrong type, options that contradict each other, or a file that
            cannot be read.
    """
    if Path(name).suffix in FILES:
        return override(_read_file(Path(name)), overrides)
    name = str(name)
    options = _read_preset(name)
    del options["description"]
    if "extends" in options:
        base = resolve(options.pop("extends"))
        recipe = _read_recipe(options.pop("recipe")) if "recipe" in options else {}
        config = _with(base, _flat(recipe) | _flat(options)).model_copy(update={"preset": name})
    else:
        config = _validated({"preset": name, **options})
    return override(config, overrides)


def override(config: Config, overrides: Overrides) -> Config:
    """A copy of a configuration with some options set. Another length moves the drops (`dqdet.config.length`).

    Raises:
        DqdetError: as `resolve`.
    """
    given = without_the_other(parse_overrides(overrides))
    result = _with(config, given)
    if not any(path in given for path in DROPS):
        result.train = result.train.model_copy(update=moved_drops(config.train, result.train))
    return result


def _with(config: Config, given: Mapping[str, Any]) -> Config:
    """A copy with the given options, by their dotted paths, and no others."""
    options = config.model_dump()
    known = _flat(options)
    for path, value in given.items():
        if path in FIXED and value != known[path]:
            raise DqdetError(f"{path} cannot be set: choose another preset ({', '.join(preset_names())})")
        if path not in known:
            if value == {} and any(option.startswith(f"{path}.") for option in known):
                continue  # no option of this group
            raise DqdetError(_unknown_option(path, list(known)))
        *sections, option = path.split(".")
        section = options
        for part in sections:
            section = section[part]
        section[option] = value
    return _validated(options)


def override_some(config: Config, overrides: Overrides, allowed: Sequence[str], reason: str) -> Config:
    """The same where only some options can be set.

    Args:
        config: to be copied.
        overrides: of its options.
        allowed: options, and groups of options.
        reason: why others are refused, for example "cannot change in a training that goes on".

    Raises:
        DqdetError: as `resolve`, or an option is not allowed; says which ones are.
    """
    overrides = parse_overrides(overrides)
    known = _flat(config.model_dump())
    for path in overrides:
        if path in known and not any(path == option or path.startswith(f"{option}.") for option in allowed):
            raise DqdetError(f"{path} {reason}; what can be set is {', '.join(allowed)}")
    return override(config, overrides)


def changes(config: Config) -> dict[str, Any]:
    """The overrides of its preset that make a configuration, without what is filled from the data set."""
    options = _flat(config.model_dump(exclude={"classes", "category_ids", "stuff"}))
    preset = resolve(config.preset)
    length = _length(config) if _length(config) != _length(preset) else {}
    before = _flat(override(preset, length).model_dump())
    return length | {path: value for path, value in options.items() if value != before[path]}


def _length(config: Config) -> dict[str, Any]:
    return {path: value for path, value in _flat(config.model_dump()).items() if path in LENGTH and value is not None}


def prolonged(config: Config, overrides: Overrides) -> dict[str, Any]:
    """Overrides of a training that goes on, together with the drops that stay.

    Those that follow from its preset and its length follow a new length, too. Those that were set stay as they are.
    """
    given = parse_overrides(overrides)
    own = {path: value for path, value in _flat(config.model_dump()).items() if path in DROPS}
    preset = _flat(override(resolve(config.preset), _length(config)).model_dump())
    follow = all(preset[path] == value for path, value in own.items())
    return given if follow or any(path in given for path in DROPS) else own | given


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """Overrides by the dotted paths of their options.

    Of a ``key=value`` text, numbers and flags stay text: the option's own type says how to read them
    (``data.train=2017`` is a name, ``train.epochs=12`` a number). Of an option that is given twice, the last value
    counts, and a warning says so.
    """
    if isinstance(overrides, Mapping):
        return _flat(overrides)
    parsed: dict[str, Any] = {}
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator:
            raise DqdetError(f"'{text}' is not of the form option=value")
        try:
            read = yaml.safe_load(value)
            given = _flat({path: read if isinstance(read, dict | list | None) else value})
        except NOT_YAML as error:
            raise DqdetError(f"{printable(text)}: not a value: {str(error).splitlines()[0]}") from error
        for twice in parsed.keys() & given.keys():
            logger.warning(f"{twice} is given twice: {twice}={parsed[twice]} has no effect")
        parsed |= given
    return parsed


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options by their dotted paths as words of a command line, which :func:`parse_overrides` reads."""
    # Text as it is, everything else as YAML.
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in options.values())
    return [f"{path}={text}" for path, text in zip(options, texts, strict=True)]


def to_yaml(config: Config) -> str:
    """Every option, resolved, in the order of the schema; numbers and lists in one line."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def explained(config: Config) -> str:
    """The same with what each option is, as comments."""
    return "".join(_explained(config, ""))


def _explained(section: Section, indent: str) -> Iterator[str]:
    for option in type(section).model_fields:
        value, comment = getattr(section, option), f"  # {section.explanation(option)}\n"
        if isinstance(value, Section):
            yield f"{indent}{option}:{comment}"
            yield from _explained(value, f"{indent}  ")
        else:
            line = yaml.dump({option: value}, Dumper=_Dumper, width=sys.maxsize, allow_unicode=True)
            yield indent + line.rstrip("\n").replace("\n", f"\n{indent}") + comment


def from_yaml(text: str, source: str) -> Config:
    """The inverse of `to_yaml`. ``source``, the file, is named in errors.

    Files from before ``queries.context`` mean the map that was pooled then, the published one.
    """
    options = _options(text, source)
    try:
        config = _validated(options)
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    if "context" not in config.queries.model_fields_set and config.queries.kind != "static":
        config.queries.context = config.model.published_context
    return config


def _options(text: str, source: str) -> dict[str, Any]:
    try:
        options = yaml.safe_load(text)
    except NOT_YAML as error:
        raise DqdetError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise DqdetError(f"{source}: not a configuration of dqdet")
    return options


def _read_file(file: Path) -> Config:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DqdetError(f"{file}: cannot be read ({reason}); give the name of a preset or a configuration") from error
    options = _options(text, str(file))
    if "extends" not in options:
        return from_yaml(text, str(file))
    preset = resolve(str(options.pop("extends")))
    try:
        return override(preset, options)
    except DqdetError as error:
        raise DqdetError(f"{file}: {error}") from error


class _Dumper(yaml.SafeDumper):
    """Lists in one line."""


for _kind in (list, tuple):
    _Dumper.add_representer(
        _kind, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
    )


def _read_preset(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        nearest = get_close_matches(name, names, n=1, cutoff=0.5)
        raise DqdetError(f"unknown preset '{name}'{_suggestion(nearest)}; there are: {', '.join(names)}")
    return yaml.safe_load(files("dqdet").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8"))


def _read_recipe(name: str) -> dict[str, Any]:
    """Options that several presets add to those of the one they extend, before their own."""
    return yaml.safe_load(files("dqdet").joinpath("presets", "recipes", f"{name}.yaml").read_text(encoding="utf-8"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        flat |= inner or {f"{prefix}{key}": value}
    return flat


def _unknown_option(path: str, known: list[str]) -> str:
    inside = [option for option in known if option.startswith(f"{path}.")]
    if inside:
        return f"{path} is a group of options; set one of {', '.join(inside)}"
    same_name = [option for option in known if option.split(".")[-1] == path.split(".")[-1]]
    nearest = same_name or get_close_matches(path, known, n=1, cutoff=0.5)
    return f"unknown option '{path}'{_suggestion(nearest)}; `dqdet presets NAME` prints all options"


def _suggestion(nearest: list[str]) -> str:
    return f", did you mean {' or '.join(nearest)}?" if nearest else ""


def _validated(options: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(options)
    except ValidationError as error:
        raise DqdetError(listed([_problem(problem) for problem in error.errors()], "; ")) from error


def _problem(error: Any) -> str:
    """One of pydantic's errors in the words of the command line: ``train.epochs=abc: should be ...``."""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    location = [printable(str(part)) for part in error["loc"]]
    if location[0] in ("model", "loss"):
        del location[1:2]  # pydantic adds the kind here
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown option '{path}'"
    message = message.replace("Input should be", "should be").split(", unable")[0]
    value = error["input"]
    return f"{path}={printable(value) if isinstance(value, str) else value_text(value)}: {message}"
