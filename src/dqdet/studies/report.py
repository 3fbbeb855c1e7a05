"""What a study leaves behind: results as JSON, tables as Markdown, a figure, and a page for the documentation."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dqdet.runs.folder import write_file
from dqdet.studies import QUESTIONS
from dqdet.studies.request import Request
from dqdet.studies.running import machine

OF_PAPER = "paper's"  # in the names of columns


@dataclass(frozen=True)
class Report:
    """What came out."""

    title: str
    results: dict[str, Any]
    tables: list[list[str]]  # lines of Markdown
    note: str  # on how to read them
    learned: list[str] = field(default_factory=list)  # sentences
    figure: Figure | None = None
    measured_on: str = field(default_factory=machine)

    def text(self) -> str:
        """The tables, and what was learned."""
        parts = ["\n".join(lines) for lines in self.tables]
        if self.learned:
            parts.append("\n".join(f"- {sentence}" for sentence in self.learned))
        return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown, without columns of the paper that would be empty."""
    kept = [
        column for column, name in enumerate(header) if OF_PAPER not in name or any(cells[column] for cells in rows)
    ]
    lines = [[cells[column] for column in kept] for cells in (header, ["---"] * len(header), *rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def write(report: Report, request: Request, page: Path | None) -> None:
    """``results.json``, ``table.md`` and ``NAME.svg`` and ``.png`` in the study's folder, and a page if asked for.

    Raises:
        DqdetError: a file cannot be written.
    """
    found = {
        "study": request.name,
        "command": request.command(),
        "machine": report.measured_on,
        "results": report.results,
    }
    write_file(request.out / "results.json", json.dumps(found, indent=1).encode())
    write_file(request.out / "table.md", report.text().encode())
    if report.figure is not None:
        save(report.figure, request.out / request.name)
    if page is not None:
        of_paper = any(OF_PAPER in header for header, *_ in report.tables)
        lines = [f"# {report.title}", "", QUESTIONS[request.name], ""]
        if report.figure is not None:
            save(report.figure, page.with_suffix(""))
            lines += [f"![{report.title}]({page.stem}.svg)", ""]
        lines += [
            report.text(),
            report.note + " The paper's numbers are of its own data sets." * of_paper,
            "",
            f"Measured on {report.measured_on}. Again: `{request.command()}`.",
            "",
        ]
        write_file(page, "\n".join(lines).encode())


def save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # words as words
        for ending in ("svg", "png"):
            content = io.BytesIO()
            figure.savefig(content, format=ending, dpi=150, bbox_inches="tight")
            write_file(path.with_suffix(f".{ending}"), content.getbuffer())
