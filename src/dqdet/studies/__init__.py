"""The paper's tables and figures as studies, one file each; the paper's question first, its control beside it.

A study trains (or takes) models on ``scenes`` or any other data set, keeps every training in its folder, and writes
``results.json``, a table with the paper's numbers beside ours, and a figure where the paper has one.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqdet.errors import DqdetError

# PyTorch is imported where it is used: `dqdet study` shall answer at once.
if TYPE_CHECKING:
    from dqdet.studies.report import Report

QUESTIONS = {
    "combinations": "Table 1: are combinations of a static model's learned queries still good queries?",
    "detectors": "Table 2: do modulated queries help the detectors, and more than their controls do?",
    "segmentation": "Tables 3 to 5: the same for panoptic and instance segmentation",
    "video": "Table 6: the same for video instance segmentation",
    "generated": "Section 3.3: are queries that an MLP makes worse than combinations of learned ones?",
    "beta": "Table 7: how much do the basic queries need a loss of their own?",
    "grouped": "Table 8: is the gain one of more training queries, and how shall these train?",
    "cost": "Table 9: time, memory and parameters of each kind of queries",
    "queries": "Figure 1: AP against the number of queries and the operations of the decoder",
    "epochs": "Figure 3a: AP along the training",
    "ratio": "Figure 3b: how many basic queries shall stand behind a modulated one?",
    "coefficients": "Figure 4: what do the coefficients know of the image?",
}


def study(
    name: str,
    out: str | Path,
    *,
    seeds: int | None = None,
    jobs: int | None = None,
    preset: str | None = None,
    model: str | Path | None = None,
    only: tuple[str, ...] = (),
    report: bool = False,
    page: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **overrides: Any,
) -> Report:
    """Run a study, or go on with it, and write its results.

    Args:
        name: one of ``QUESTIONS``.
        out: folder of its trainings and results; trainings that it has already are not repeated.
        seeds: trainings of each kind; None: what the study needs at least. Of ``cost`` the repeats.
        jobs: trainings at a time; None: one for each CPU core, or for each GPU.
        preset: trained as it is, instead of the study's own small models on ``scenes``.
        model: a run, a checkpoint or a name on the hub, instead of training one (``combinations``, ``coefficients``).
        only: labels of models and of queries in the table; others are left out.
        report: train nothing, and report what the folder has.
        page: a new Markdown file, with table, figure and how to run it again; the figure lies beside it.
        say: is called with a line whenever something is done.
        overrides: options of all trainings.

    Returns:
        the report, as written.

    Raises:
        DqdetError: unknown name, options or labels, faulty data or folder.
        Interrupted: by SIGINT, and of the command by SIGTERM; the same call goes on.
    """
    if name not in QUESTIONS:
        nearest = get_close_matches(name, QUESTIONS, n=1, cutoff=0.5)
        suggestion = f", did you mean {nearest[0]}?" if nearest else ""
        raise DqdetError(f"unknown study '{name}'{suggestion}; there are: {', '.join(QUESTIONS)}")
    from dqdet.formats.writing import check_place
    from dqdet.studies.report import write
    from dqdet.studies.request import Request

    if page is not None:
        check_place(Path(page))
        if Path(page).exists():  # perhaps with what somebody has written on it
            raise DqdetError(f"{page} exists already; remove it, or choose another page")

    request = Request(
        name,
        Path(out),
        seeds,
        jobs,
        preset,
        None if model is None else str(model),
        tuple(only),
        report,
        overrides,
        say,
    )
    try:
        found = import_module(f"dqdet.studies.{name}").run(request)
        write(found, request, None if page is None else Path(page))
    except OSError as error:
        raise DqdetError(f"{out}: cannot be read or written ({error}); choose another folder or make space") from error
    return found
