"""How images of a Hugging Face model are prepared: its image processor's file, as options of ours."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.errors import DqdetError
from dqdet.weights.huggingface import HuggingFace, Theirs, read_json

PREPARATION = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # newer; may have the same as its "image_processor"
# Classes of image processors, older ones included; those of masks stretch sides to multiples of ``size_divisor``.
DETR = r"(?:|Conditional|Deformable|Rf)Detr"
MASKS = r"(?:MaskFormer|Mask2Former)"
SUFFIX = r"(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)"
BILINEAR = 2  # in Pillow's numbers
ANY_LENGTH = 2**16  # of a longer side that has no limit
IMAGENET = DataConfig()  # whose colours are the default there, too


def read_preparation(folder: Path, there: HuggingFace) -> dict[str, Any]:
    """How a model's images are prepared, as overrides; {} where its folder does not say.

    What is said about annotations (``do_reduce_labels``, ``ignore_index``, ``format``) has no effect on images.

    Args:
        folder: of the model.
        there: its family.

    Raises:
        DqdetError: it cannot be read, or dqdet cannot prepare images so.
    """
    for name in (PROCESSOR, PREPARATION):  # in the library's order
        if (folder / name).is_file():
            theirs = read_json(folder, name)
            if name == PROCESSOR and isinstance(theirs, dict):
                theirs = theirs.get("image_processor")
            if isinstance(theirs, dict):
                try:
                    return preparation(theirs, there)
                except DqdetError as error:
                    raise DqdetError(f"{name} has {error}") from error
    return {}


def preparation(theirs: Theirs, there: HuggingFace) -> dict[str, Any]:
    """The same from the content of such a file, whose defaults are those of ``transformers``."""
    kind = str(theirs.get("image_processor_type") or theirs.get("feature_extractor_type") or there.processor)
    of_masks = re.fullmatch(MASKS + SUFFIX, kind) is not None
    if not of_masks and not re.fullmatch(DETR + SUFFIX, kind):
        raise DqdetError(f"image_processor_type={kind}; supported are those of DETR and MaskFormer")
    theirs = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True, "size_divisor": 32, **theirs}
    for option in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
        if not isinstance(theirs[option], bool):
            raise DqdetError(f"{option}={theirs[option]}; should be true or false")
    if type(theirs["size_divisor"]) is not int or theirs["size_divisor"] < 0:
        raise DqdetError(f"size_divisor={theirs['size_divisor']}; should be a whole number")
    if theirs.get("resample", BILINEAR) != BILINEAR:
        raise DqdetError(f"resample={theirs['resample']}; supported is {BILINEAR} (bilinear) only")
    options: dict[str, Any] = _fit(theirs, of_masks) if theirs["do_resize"] else {"data.val_fit": "original"}
    multiple = theirs["size_divisor"] or 1 if of_masks and theirs["do_resize"] else 1
    fixed = options["data.val_fit"] == "stretch" and all(side % there.divisor == 0 for side in options["data.val_size"])
    if multiple % there.divisor and not fixed:
        raise DqdetError(
            f"do_resize={theirs['do_resize']} and size_divisor={theirs['size_divisor']}, which make sizes that "
            f"{there.divisor} does not divide; {there.model_type} is given multiples of {there.divisor} only"
        )
    options |= {"data.val_divisor": multiple, **_colours(theirs)}
    if theirs.get("pad_size") and (of_masks or theirs["do_pad"]):
        options["data.val_pad"] = _sides("pad_size", theirs["pad_size"], "height", "width")
    return options


def of_processor(data: DataConfig, there: HuggingFace) -> dict[str, Any]:
    """The other way: arguments of an image processor of ``transformers`` that prepares images as ``data`` says.

    Official DETR rounds one side of an image otherwise (``data.val_fit=shorter``); that is a pixel at most.

    Args:
        data: options of the preparation, of validation and prediction.
        there: the family. Processors of MaskFormer's stretch sides to multiples, where dqdet pads them.

    Raises:
        DqdetError: none of these processors prepares images so.
    """
    longest = data.max_size if data.val_max_size is None else data.val_max_size or ANY_LENGTH
    options: dict[str, Any] = {"image_mean": list(data.mean), "image_std": list(data.std)}
    match data.val_fit:
        case "shorter" if data.square:
            options["size"] = {"height": data.val_resize, "width": data.val_resize}
        case "shorter" | "exact":
            options["size"] = {"shortest_edge": data.val_resize, "longest_edge": longest}
        case "original":
            options["do_resize"] = False
        case fit:
            assert data.val_size is not None, "the configuration has checked it"
            names = ("max_height", "max_width") if fit == "inside" else ("height", "width")
            options["size"] = dict(zip(names, data.val_size, strict=True))
    if data.val_pad is not None:
        options["pad_size"] = dict(zip(("height", "width"), data.val_pad, strict=True))
    if re.fullmatch(MASKS + SUFFIX, there.processor):
        options["size_divisor"] = math.lcm(data.val_divisor, there.divisor)
    elif data.val_divisor > 1:
        raise DqdetError(
            f"data.val_divisor={data.val_divisor}: transformers stretches only images of MaskFormer's models to "
            "multiples; set data.val_divisor=1"
        )
    return options


def _fit(theirs: Theirs, of_masks: bool) -> dict[str, Any]:
    """The size that images are brought to. Older files have a number or a list, and ``max_size`` beside it."""
    size, longest = theirs.get("size"), theirs.get("max_size")
    if size is None:
        size = {"shortest_edge": 800, "longest_edge": (longest if of_masks else None) or 1333}
    elif isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": longest or (None if of_masks else 1333)}
    elif isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    given = {name for name, side in size.items() if side is not None} if isinstance(size, dict) else set()
    if given >= {"shortest_edge", "longest_edge"}:
        shorter, longer = _sides("size", size, "shortest_edge", "longest_edge")
        return {"data.val_fit": "exact", "data.val_resize": shorter, "data.val_max_size": longer}
    for fit, names in ("inside", ("max_height", "max_width")), ("stretch", ("height", "width")):
        if given >= set(names):
            return {"data.val_fit": fit, "data.val_size": _sides("size", size, *names)}
    raise DqdetError(
        f"size={theirs.get('size')}; supported are shortest_edge and longest_edge, height and width, or max_height and "
        "max_width"
    )


def _sides(option: str, size: Any, *names: str) -> list[int]:
    sides = [size.get(name) for name in names] if isinstance(size, dict) else []
    whole = [side for side in sides if type(side) is int and side > 0]
    if len(whole) < len(names):
        raise DqdetError(f"{option}={size}; should be {' and '.join(names)} in whole pixels")
    return whole


def _colours(theirs: Theirs) -> dict[str, Any]:
    """Mean and deviation of colours in 0..1; theirs are of colours that are multiplied by ``rescale_factor``."""
    factor = _numbers(theirs, "rescale_factor", 1 / 255)[0] if theirs["do_rescale"] else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if theirs["do_normalize"]:
        mean, std = _numbers(theirs, "image_mean", IMAGENET.mean), _numbers(theirs, "image_std", IMAGENET.std)
    if factor <= 0 or min(std) <= 0:
        raise DqdetError(f"rescale_factor={factor} and image_std={std}; should be greater than 0")
    scale = round(255 * factor, 12)  # 1 of a factor of 1 / 255, whose rounding would show in every number
    return {"data.mean": [value / scale for value in mean], "data.std": [value / scale for value in std]}


def _numbers(theirs: Theirs, option: str, default: Any) -> list[float]:
    """One number for all colours, or three."""
    values = default if theirs.get(option) is None else theirs[option]
    values = list(values) if isinstance(values, list | tuple) else [values] * 3
    if len(values) != 3 or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise DqdetError(f"{option}={theirs.get(option)}; should be three numbers, of red, green and blue")
    return values
