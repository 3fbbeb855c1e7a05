"""The blocks of code in the README and in docs/: what they are, what they name, and what they need to run small."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import click
import numpy as np
import PIL.Image
import typer

import dqdet
from dqdet import cli, studies
from dqdet.cli.arguments import OPTION
from dqdet.config import MaskLossConfig, parse_overrides, resolve
from tiny import TINY

ROOT = Path(__file__).resolve().parent.parent
MADE = ("commands.md", "options.md")  # of the program, when the site is built
PAGES = [ROOT / "README.md", *sorted(page for page in ROOT.glob("docs/**/*.md") if page.name not in MADE)]
SHELL = ("", "bash", "console")
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z ]+)(?:: (?P<reason>[^>]+))? -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
MARKS = ("not run", "slow", "other data", "needs")  # with a reason, but for "slow"; that of "needs" is a package
SIZES = {name: value for name, value in TINY.items() if name != "model.refine"}  # which not all families have
SIZES |= {"model.backbone.pretrained": False, "train.batch": 2, "train.epochs": 1, "train.drop": []}
SIZES |= {"data.scenes.train_images": 4, "data.scenes.val_images": 4, "data.window": [96, 96]}
SIZES |= {"data.resize": [96], "data.val_resize": 96, "data.max_size": 128}  # maps of more than one cell
SMALLER = {  # options of commands that would take long
    ("benchmark",): ["--repeats", "2", "--batch", "1", "--size", "64"],
    ("data", "benchmark"): ["--images", "2", "data.resize=[64]"],
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line
    language: str
    text: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Of the shell: words of each command; the answers in a console are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        parts = (match[name] or "" for name in ("language", "text", "mark", "reason"))
        found.append(Block(page, line, *parts))
    assert len(re.findall("^```", text, re.M)) == 2 * len(found), f"{page}: a block without an end"
    return found


# What exists.


def check(block: Block) -> None:
    """All that a block names exists; raises where it does not."""
    assert block.mark in ("", *MARKS), f"unknown mark {block.mark}"
    assert block.reason or block.mark in ("", "slow"), f"{block.mark}: without a reason"
    if block.language == "python":
        check_python(block.text)
    else:
        assert block.language in SHELL, f"unknown language {block.language}"
        for words in block.commands():
            check_command(words)


def check_command(words: list[str]) -> None:
    match words:
        case ["dqdet", *rest]:
            check_dqdet(rest)
        case ["torchrun", *rest]:
            assert rest[rest.index("-m") + 1] == "dqdet"
            check_dqdet(rest[rest.index("-m") + 2 :])
        case ["srun", *rest]:
            check_dqdet(rest[rest.index("dqdet") + 1 :])
        case ["make", target, *variables]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M), f"no target {target}"
            assert all("=" in variable for variable in variables)
        case ["python", script, *rest]:
            source = (ROOT / script).read_text()
            for option in rest:
                assert not option.startswith("--") or f'"{option}"' in source, f"{script} has no {option}"
        case ["pip", "install", *rest]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            extras = [extra for word in rest for extra in re.findall(r"dqdet\[(\w+)\]", word)]
            assert set(extras) <= set(known), f"there are {', '.join(known)}"
        case ["curl", *rest]:
            (address,) = (word for word in rest if word.startswith("http"))
            path = re.sub(r"^http://127\.0\.0\.1:8000|\?.*", "", address)
            assert f'"{path}"' in (ROOT / "src/dqdet/serving/app.py").read_text(), f"nothing is served at {path}"
        case _:
            raise AssertionError(f"unknown command: {shlex.join(words)}")


def check_dqdet(words: list[str]) -> None:
    """The command, its options and their values, and OPTION=VALUE of the preset."""
    if words[-1] == "...":  # the rest is as above
        words = words[:-1]
    command: click.Command = typer.main.get_command(cli.app)
    context = click.Context(command, info_name="dqdet")
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    context = command.make_context(context.info_name, list(words), parent=context.parent)
    given = context.params
    texts = [*(given.get("options") or []), *(given.get("sources") or []), *(given.get("models") or [])]
    options = [text for text in texts if OPTION.match(text)]
    preset = given.get("preset") or "deformable_detr_r50"
    if OPTION.match(preset):  # --resume needs none
        options, preset = [preset, *options], "deformable_detr_r50"
    if context.info_name == "presets" and given["name"]:
        preset = given["name"]
    if context.info_name == "study" and given["name"]:
        assert given["name"] in studies.QUESTIONS, f"no study {given['name']}"
    overrides = parse_overrides(options)
    if preset == "auto":
        preset = "scenes_tiny"
    if Path(preset).suffix != ".yaml":
        resolve(preset, overrides)


def check_python(text: str) -> None:
    """It compiles, what it imports and takes of dqdet exists, and presets take the options that are given."""
    tree = ast.parse(text)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value_of(node, names | {"dqdet": dqdet})
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("dqdet.train", "dqdet.create") and node.args:
            given = [
                one for one in node.keywords if one.arg in ROOT_OPTIONS and not isinstance(one.value, ast.Attribute)
            ]
            options = {one.arg: ast.literal_eval(one.value) for one in given}
            resolve(ast.literal_eval(node.args[0]), options)


ROOT_OPTIONS = tuple(type(resolve("scenes_tiny")).model_fields)


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a dotted name of a module is; None where it begins with anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, names)
        return getattr(owner, node.attr) if isinstance(owner, ModuleType) else None
    return None


# What they need to run.


def shrunk(words: list[str]) -> list[str]:
    """A command of dqdet at tiny sizes; of an option that is given twice, the last one counts."""
    if words[0] == "train" and "--resume" not in words:
        masks = words[1] != "auto" and isinstance(resolve(words[1]).loss, MaskLossConfig)
        return words + as_words(SIZES | ({"loss.points": 64} if masks else {}))
    return words + next((more for start, more in SMALLER.items() if tuple(words[: len(start)]) == start), [])


def as_words(options: dict[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def prepare(folder: Path) -> None:
    """What the pages speak of, in a folder: data sets and pictures."""
    random = np.random.default_rng(0)
    for name in ("coco", "cells"):
        for split, first in ("train", 0), ("val", 4):
            detection_split(folder / "data" / name, split, random, range(first, first + 4))
    for name in (
        "photos/a.jpg",
        "photos/deep/b.jpg",
        "more/deep/c.jpg",
        "street.jpg",
        "SOURCE.../d.jpg",
        "val2017/e.jpg",
    ):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(random)[0].save(file)
    records = [{"id": 7, "file_name": "e.jpg", "width": 80, "height": 64}]
    (folder / "instances_val2017.json").write_text(json.dumps({"images": records, "annotations": [], "categories": []}))
    with av.open(folder / "street.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(random)[0])))
        container.mux(stream.encode())


def picture(random: np.random.Generator) -> tuple[PIL.Image.Image, list[int]]:
    """Noise with a bright box, and the box: x, y, width, height."""
    pixels = random.integers(0, 90, (64, 80, 3), dtype=np.uint8)
    x, y, width, height = (int(random.integers(low, high)) for low, high in ((0, 40), (0, 30), (12, 40), (12, 30)))
    pixels[y : y + height, x : x + width] += 150
    return PIL.Image.fromarray(pixels), [x, y, width, height]


def detection_split(root: Path, split: str, random: np.random.Generator, ids: range) -> None:
    """One split as COCO has it, with a box and its polygon in each image."""
    images, annotations = [], []
    (root / "images" / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number in ids:
        image, (x, y, width, height) = picture(random)
        name = f"{number}.png"
        image.save(root / "images" / split / name)
        images.append({"id": number, "file_name": name, "width": 80, "height": 64})
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        box = {"bbox": [x, y, width, height], "area": width * height, "segmentation": [corners], "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2, **box})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
