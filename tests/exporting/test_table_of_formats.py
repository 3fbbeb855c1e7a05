"""The tables in the documentation of what exported files carry are those of the formats' data."""

from __future__ import annotations

from pathlib import Path

import pytest

from dqdet.exporting.formats import FORMATS, WITHOUT_FULL_MASKS
from dqdet.exporting.meaning import OUTPUTS

PAGE = (Path(__file__).parents[2] / "docs" / "using.md").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_row(name):
    kind = FORMATS[name]
    extra = f"`dqdet[{kind.extra}]`" if kind.extra else "nothing"
    opened = ", ".join(f"`{package}`" for package in kind.opening) or "PyTorch"
    (row,) = [line for line in PAGE if line.startswith(f"| `{name}` |")]
    assert row.startswith(f"| `{name}` | `{kind.suffix}` | {extra} | {opened} |")


@pytest.mark.parametrize("task", sorted({task for task, _ in OUTPUTS}))
def test_every_task_has_its_row(task):
    common = set.intersection(*({*outputs} for (of, _), outputs in OUTPUTS.items() if of == task))
    names = [name for (of, _), outputs in OUTPUTS.items() if of == task for name in outputs if name in common]
    outputs = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
    reason = WITHOUT_FULL_MASKS.get(task)
    (row,) = [line for line in PAGE if line.startswith(f"| {task} |")]
    assert row == f"| {task} | {outputs} | {f'no: {reason}' if reason else 'yes'} |"


def test_there_is_no_row_too_many():
    start = PAGE.index("| format | file | to write it | opened by | any size | one size | `--half` | batches |")
    rows = PAGE[start + 2 :]
    assert [row.split("`")[1] for row in rows[: rows.index("")]] == [*FORMATS]
