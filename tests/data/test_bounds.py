"""Values of annotation files that no annotation has, and what people are told of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import opening
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_coco import annotation, document, record, write

from dqdet.errors import DqdetError, printable, value_text
from dqdet.formats.masks import segmentation_fault
from dqdet.formats.records import are_numbers, is_flag, is_id, is_text

error_of = partial(opening.error_of, resize=[32], val_resize=32)
DIGITS = 10**400


def bad(fault: str) -> str:
    return f"bad entries (1): {fault}; correct or remove them"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"iscrowd": "0"}, "has the iscrowd '0', which is neither 0 nor 1"),
        ({"iscrowd": None}, "has the iscrowd None, which is neither 0 nor 1"),
        ({"iscrowd": 2}, "has the iscrowd 2, which is neither 0 nor 1"),
        ({"iscrowd": []}, "has the iscrowd [], which is neither 0 nor 1"),
        ({"bbox": [True, 5, 20, 30]}, "has a bbox that is not 4 finite numbers: [True, 5, 20, 30]"),
        ({"bbox": [1, 2, 3, DIGITS]}, "has a bbox that is not 4 finite numbers: [1, 2, 3, an integer of 1329 bits]"),
        ({"bbox": [1, 2, 3, 1e9]}, "has a bbox with numbers beyond 1000000: [1, 2, 3, 1000000000.0]"),
        ({"area": "600"}, "has an area that is not a number of at most 1e+12: '600'"),
        ({"area": None}, "has an area that is not a number of at most 1e+12: None"),
        ({"image_id": True}, "has the unknown image_id True"),
        ({"category_id": DIGITS}, "has the unknown category_id an integer of 1329 bits"),
    ],
)
def test_annotations(tmp_path, changes, fault):
    file = write(tmp_path, document(annotations=[annotation(1), annotation(8, **changes)]))
    assert error_of(tmp_path) == f"{file}: {bad(f'annotation 8 {fault}')}"


@pytest.mark.parametrize("crowd", [True, 1])
def test_crowds_may_be_flags(tmp_path, crowd):
    write(tmp_path, document(annotations=[annotation(1), annotation(8, iscrowd=crowd)]))
    dataset = opening.opened(tmp_path)
    assert len(dataset.labels) == 1
    assert [a["iscrowd"] for a in dataset.ground_truth()["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"height": 40.5}, "has the height 40.5, which is no whole number in 1..65535"),
        ({"width": 10**6}, "has the width 1000000, which is no whole number in 1..65535"),
        ({"width": True}, "has the width True, which is no whole number in 1..65535"),
        ({"height": 65000, "width": 65000}, "has 65000 x 65000 pixels, more than 178956970"),
        ({"file_name": "\ud800.png"}, "has the file_name '\\ud800.png', which is no text of at most 1024"),
        ({"file_name": 7}, "has the file_name 7, which is no text of at most 1024 valid characters"),
        ({"file_name": "a" * 2000}, "has the file_name 'aaa"),
        ({"file_name": "a\0"}, "has the file_name 'a\\x00', which is no text"),
    ],
)
def test_images(tmp_path, changes, fault):
    write(tmp_path, document(images=[record(1), record(2, **changes)]))
    assert f"image 2 {fault}" in error_of(tmp_path)


def test_categories_of_one_name(tmp_path):
    file = write(tmp_path, document(categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": "dog"}]))
    fault = "category 3 has the name of another one: 'dog'; category 7 has the name of another one: 'dog'"
    assert error_of(tmp_path) == f"{file}: bad entries (2): {fault}; correct or remove them"


def test_nesting_beyond_all_bounds(tmp_path):
    nest = "[" * 100_000 + "]" * 100_000
    file = write(tmp_path, json.dumps(document())[:-1] + f', "info": {nest}}}')
    assert error_of(tmp_path) == f"{file}: lists or objects are nested too deeply; export it as COCO JSON"


ZIGZAG = [1e6 * (-1) ** (number // 2) for number in range(400)]


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[0, 0, 1e8, 0, 1e8, 1e8]], "has a polygon with coordinates beyond 1000000"),
        ([[0, 0, 3e7, 0, 3e7, 3e7]], "has a polygon with coordinates beyond 1000000"),
        ([[0, 0, True, 0, 5, 5]], "has a polygon that is not a list of finite numbers"),
        ([[0, 0, DIGITS, 0, 5, 5]], "has a polygon that is not a list of finite numbers"),
        ([[0, 0, float("nan"), 0, 5, 5]], "has a polygon that is not a list of finite numbers"),
        ([ZIGZAG], "has a polygon with an outline of more than 2097152 pixels"),
        ({"size": [40, 60], "counts": "o" * 10_000}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": "\0\0"}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": "\ud800"}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": [0, 2**70]}, "has an RLE whose counts are not 2400 pixels"),
        ([[0, 0, 59, 0, 59, 39]], None),
        ([[-30, -20, 90, -20, 90, 60]], None),
    ],
)
def test_masks(segmentation, fault):
    assert segmentation_fault(segmentation, 40, 60) == fault


def test_types():
    assert [is_id(value) for value in (0, -(2**63), 2**63 - 1)] == [True] * 3
    assert [is_id(value) for value in (True, 2**63, 1.0, "1", None)] == [False] * 5
    assert [is_flag(value) for value in (0, 1, True, False)] == [True] * 4
    assert [is_flag(value) for value in ("0", None, 2, 0.0, [])] == [False] * 5
    assert [is_text(value) for value in ("a", "[/wing]", "ü😀")] == [True] * 3
    assert [is_text(value) for value in ("", "\udfff", "\0", "a" * 1025, 1, None)] == [False] * 6


@given(values=st.lists(st.floats() | st.integers() | st.booleans() | st.text() | st.none(), max_size=6))
def test_numbers_are_what_a_loop_says(values):
    expected = all(type(value) in (int, float) and abs(value) <= 1e6 for value in values)
    assert are_numbers(values) == expected


@given(text=st.text())
def test_messages_are_printable_lines(text):
    message = str(DqdetError(f"{text}: wrong"))
    assert message.isprintable()
    assert message.endswith(": wrong")
    assert len(printable(text * 50)) <= 100


def test_messages_keep_their_beginning_and_end():
    message = str(DqdetError(f"file.json: {'x' * 10_000}; correct it"))
    assert len(message) <= 4000
    assert message.startswith("file.json: xxx")
    assert message.endswith("xxx; correct it")
    assert len(value_text([["a" * 10_000] * 100] * 100)) < 500


def test_a_video_with_a_faulty_crowd(tmp_path):
    from test_youtube_vis import document, opened, written

    annotations = document()
    annotations["annotations"][1]["iscrowd"] = "0"
    annotations["categories"][0]["name"] = annotations["categories"][1]["name"]
    with pytest.raises(DqdetError) as caught:
        opened(Path(written(tmp_path, annotations)))
    assert "category 7 has the name of another one: 'giant_panda'" in str(caught.value)
    assert "annotation 2 has the iscrowd '0', which is neither 0 nor 1" in str(caught.value)
