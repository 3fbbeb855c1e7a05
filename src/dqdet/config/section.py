"""A group of options, and the kinds of values that options have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and values are checked on assignment too."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def explanation(cls, option: str) -> str:
        """What an option is, in one line; of one whose default a family changes, the text where it is first."""
        sections = (section for section in cls.__mro__ if issubclass(section, Section))
        texts = (section.model_fields[option].description for section in sections if option in section.model_fields)
        return " ".join(next(filter(None, texts), "").split())


def _no_flag(value: object) -> object:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _writable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("text_characters", "Input should be text without zero bytes and lone surrogates")
    return text


# Bounds are wide, but what lies beyond them cannot be meant: it would fill the memory, or overflow where it is used.
Whole = Annotated[int, BeforeValidator(_no_flag)]
Real = Annotated[float, BeforeValidator(_no_flag)]
Count = Annotated[Whole, Field(gt=0, lt=2**31)]  # of steps, images and the like
CountOrZero = Annotated[Whole, Field(ge=0, lt=2**31)]
Layers = Annotated[Whole, Field(gt=0, le=100)]  # or heads, levels, points: what a model has few of
Width = Annotated[Whole, Field(gt=0, le=2**17)]  # channels, or queries
Pixels = Annotated[Whole, Field(gt=0, le=2**14)]  # side of an image in training
Frames = Annotated[Whole, Field(gt=0, le=10_000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Id = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Scale = Annotated[Real, Field(gt=0, le=16)]
Share = Annotated[Real, Field(ge=0, le=1)]
Rate = Annotated[Real, Field(ge=0, lt=1)]  # of dropout: never everything
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_writable)]


Task = Literal["detection", "instance", "panoptic", "video"]
Precision = Literal["fp32", "bf16", "fp16"]  # of a trained model in use
Context = Literal["backbone", "projected", "memory", "none"]
Classification = Literal["focal", "cross_entropy", "iou_aware"]
