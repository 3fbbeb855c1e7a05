"""The same trainings with several kinds of queries, over paired seeds: the form that most studies have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.metrics.scores import is_score
from dqdet.studies import figures
from dqdet.studies.paired import Difference, difference, learned, spread
from dqdet.studies.report import OF_PAPER, Report, table
from dqdet.studies.request import Request, Subject, subjects
from dqdet.studies.running import (
    Curve,
    Training,
    check_options,
    is_finished,
    none_finished,
    read_curve,
    run_all,
    small_name,
    trained_on,
)

METRICS = {
    "detection": ("AP", "AP50", "AP75"),
    "instance": ("AP", "AP50", "AP75"),
    "panoptic": ("PQ", "PQ_things", "AP_things", "mIoU"),
    "video": ("AP", "AP50", "AP75", "AR10"),
}
NOTE = (
    "Mean and standard deviation over the seeds, of the last validation; differences are means over pairs with the "
    "same seed, with their 95 % interval (Student's t)."
)
Paper = Mapping[str, Mapping[str, Mapping[str, float]]]  # published preset -> arm -> metric -> the paper's number


@dataclass(frozen=True)
class Arm:
    """A kind of queries, as options."""

    options: Mapping[str, Any]
    line: str = ""  # of the figure, which it is a point of
    x: float | None = None  # where on that line; None: at all places
    control: str | None = None  # the arm that it is compared with besides the reference


STATIC = Arm({"queries.kind": "static"})
GROUPED = Arm({"queries.kind": "grouped"})
MODULATED = Arm({"queries.kind": "modulated"})
CONSTANT = Arm({"queries.kind": "modulated", "queries.context": "none"})
CONTROLLED = {"static": STATIC, "grouped": GROUPED, "constant": CONSTANT, "modulated": MODULATED}


@dataclass(frozen=True)
class Comparison:
    """A study that trains every subject with every arm.

    Attributes:
        title: of the page.
        own: what is trained by default, by label.
        arms: by label, of a subject's configuration. Differences are those to the first one, unless ``reference``
            names another, and of ``modulated`` those to its other controls too.
        paper: the paper's numbers, in 0..1.
        seeds: of each kind, by default.
        metrics: by task, the one that decides first.
        figure: ``curves`` along the training, ``places`` for arms with an ``x``, or ``differences``.
        axis: what ``x`` is.
        also: more columns, computed from the configuration of an arm.
    """

    title: str
    own: Mapping[str, Subject]
    arms: Callable[[Config], Mapping[str, Arm]]
    paper: Paper = field(default_factory=dict)
    reference: str | None = None
    seeds: int = 3
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: METRICS)
    figure: str = "differences"
    axis: str = ""
    also: Callable[[Config], dict[str, float]] = lambda config: {}

    def run(self, request: Request) -> Report:
        """Train what is not trained yet, and report.

        Raises:
            DqdetError: as `dqdet.studies.study`.
        """
        if request.model is not None:
            raise DqdetError(f"--model is of combinations and coefficients; {request.name} trains its models")
        every = subjects(request, self.own)
        own = request.chosen(every)
        all_arms = {label: self.arms(subject.config(request.overrides)) for label, subject in own.items()}
        request.check_labels([*every, *(name for of_subject in all_arms.values() for name in of_subject)])
        arms = {label: request.chosen(of_subject) for label, of_subject in all_arms.items()}
        seeds = range(request.seeds or self.seeds)
        if not request.report:
            # Seed by seed, so that an early report has something of everything.
            trainings = [
                training(request, label, subject, name, arm, seed)
                for seed in seeds
                for label, subject in own.items()
                for name, arm in arms[label].items()
            ]
            run_all(trainings, request.jobs, request.say)
        rows = []
        for label, subject in own.items():
            trained = {name: finished(request, label, subject, name, arm) for name, arm in arms[label].items()}
            rows.append(Row(self, label, subject, arms[label], trained, subject.config(request.overrides)))
        if not any(row.machines for row in rows):
            raise none_finished(request.out, request.name)
        tables = [
            lines
            for _, alike in groupby(rows, key=lambda row: row.metrics)
            for lines in self._table(list(alike), request)
        ]
        return Report(
            title=self.title,
            results={row.label: row.results() for row in rows},
            tables=tables,
            note=NOTE,
            learned=[sentence for row in rows for sentence in row.sentences()],
            figure=self._figure(rows),
            measured_on=_measured_on(rows),
        )

    def _table(self, rows: list[Row], request: Request) -> list[list[str]]:
        """One table of subjects with the same metrics, of those that any model has."""
        metrics = [
            metric for metric in rows[0].metrics if any(row.last(arm, metric) for row in rows for arm in row.arms)
        ]
        also = {
            (row.label, name): self.also(row.subject.config(request.overrides, arm.options))
            for row in rows
            for name, arm in row.arms.items()
        }
        extra = list(dict.fromkeys(column for columns in also.values() for column in columns))
        header = ["model", "queries", "seeds"]
        for metric in metrics:
            header += [metric, f"{OF_PAPER} {metric}"]
        header += [*extra, f"{metrics[0]}, difference to {rows[0].reference}"]
        lines = []
        for row in rows:
            for name in row.arms:
                cells = [row.label, name, str(len(row.curves[name]))]
                for metric in metrics:
                    cells += [spread(list(row.last(name, metric).values())), row.paper(name, metric)]
                cells += [f"{also[row.label, name].get(column, float('nan')):.4g}" for column in extra]
                against = row.against(row.reference, name) if name != row.reference else None
                lines.append([*cells, "" if against is None else str(against)])
        return [table(header, lines)]

    def _figure(self, rows: list[Row]) -> Figure:
        match self.figure:
            case "curves":
                return figures.curves({row.label: row.along() for row in rows}, rows[0].metrics[0])
            case "places":
                return figures.places({row.label: row.placed() for row in rows}, self.axis, rows[0].metrics[0])
        return figures.differences({row.label: row.differences() for row in rows}, rows[0].reference)


@dataclass(frozen=True)
class Row:
    """What one subject's trainings gave."""

    study: Comparison
    label: str
    subject: Subject
    arms: Mapping[str, Arm]
    trained: Mapping[str, dict[int, Training]]  # arm -> seed -> finished training
    config: Config

    @cached_property
    def curves(self) -> dict[str, dict[int, Curve]]:
        """Arm -> seed -> validations."""
        return {
            arm: {seed: read_curve(one.folder) for seed, one in of_arm.items()} for arm, of_arm in self.trained.items()
        }

    @property
    def machines(self) -> list[str]:
        """Where it was trained."""
        return sorted({trained_on(one.folder) for of_arm in self.trained.values() for one in of_arm.values()})

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.study.metrics.get(self.config.data.task, METRICS[self.config.data.task])

    @property
    def reference(self) -> str:
        wanted = self.study.reference
        return wanted if wanted is not None and wanted in self.arms else next(iter(self.arms))

    def last(self, arm: str, metric: str) -> dict[int, float]:
        """Seed -> what the last validation measured, where there was something to measure it on."""
        measured = {seed: list(curve.values())[-1] for seed, curve in self.curves[arm].items()}
        return {seed: metrics[metric] for seed, metrics in measured.items() if is_score(metrics.get(metric))}

    def against(self, first: str, second: str) -> Difference | None:
        return difference(self.last(first, self.metrics[0]), self.last(second, self.metrics[0]))

    def differences(self) -> dict[str, Difference]:
        """Of every arm to the reference."""
        found = {arm: self.against(self.reference, arm) for arm in self.arms if arm != self.reference}
        return {arm: against for arm, against in found.items() if against is not None}

    def sentences(self) -> list[str]:
        """What each arm showed against the reference, and the method against its controls."""
        pairs = [(self.reference, arm) for arm in self.arms if arm != self.reference]
        if "modulated" in self.arms:
            controls = [arm for arm in self.arms if arm not in (self.reference, "modulated")]
            pairs += [(arm, "modulated") for arm in controls if self.reference != "modulated"]
        pairs += [
            (arm.control, name)
            for name, arm in self.arms.items()
            if arm.control is not None and arm.control in self.arms and arm.control != self.reference
        ]
        found = [(first, second, self.against(first, second)) for first, second in pairs]
        return [
            f"{self.label}: {learned(self.metrics[0], first, second, against)}"
            for first, second, against in found
            if against is not None
        ]

    def paper(self, arm: str, metric: str) -> str:
        value = self.study.paper.get(self.subject.published, {}).get(arm, {}).get(metric)
        return "" if value is None else f"{value:.3f}"

    def along(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Arm -> of each seed the points (step, metric)."""
        metric = self.metrics[0]
        return {
            arm: [
                [(step, measured[metric]) for step, measured in curve.items() if is_score(measured.get(metric))]
                for curve in seeds.values()
            ]
            for arm, seeds in self.curves.items()
        }

    def placed(self) -> dict[str, list[tuple[float | None, list[float]]]]:
        """Line -> its points: place, and the metric of all seeds."""
        lines: dict[str, list[tuple[float | None, list[float]]]] = {}
        for name, arm in self.arms.items():
            lines.setdefault(arm.line or name, []).append((arm.x, list(self.last(name, self.metrics[0]).values())))
        return lines

    def results(self) -> dict[str, Any]:
        return {
            "preset": self.subject.preset,
            "arms": {arm: {"options": dict(self.arms[arm].options), "seeds": self.curves[arm]} for arm in self.arms},
            "differences": {
                arm: {"to": self.reference, "mean": found.mean, "interval": found.interval, "pairs": found.pairs}
                for arm, found in self.differences().items()
            },
        }


def training(request: Request, label: str, subject: Subject, name: str, arm: Arm, seed: int) -> Training:
    options = subject.merged(request.overrides, arm.options, {"train.seed": seed})
    return Training(f"{label}, {name}, seed {seed}", folder(request, label, name, seed), subject.preset, options)


def folder(request: Request, label: str, name: str, seed: int) -> Path:
    return request.out / f"{small_name(label)}-{small_name(name)}-{seed}"


def finished(request: Request, label: str, subject: Subject, name: str, arm: Arm) -> dict[int, Training]:
    """Seed -> finished training in the folder, also those of more seeds than were asked for.

    Raises:
        DqdetError: one of them has other options, or no validations.
    """
    stem = folder(request, label, name, 0).name.removesuffix("0")
    places = {path: path.name.removeprefix(stem) for path in request.out.glob(f"{stem}*") if is_finished(path)}
    seeds = sorted(int(seed) for seed in places.values() if seed.isdecimal())
    trainings = {seed: training(request, label, subject, name, arm, seed) for seed in seeds}
    for one in trainings.values():
        check_options(one)
        if not read_curve(one.folder):
            raise DqdetError(f"{one.folder}: has no validations, only a part of a training; remove it to train anew")
    return trainings


def _measured_on(rows: Sequence[Row]) -> str:
    """The machines of the trainings, those of each model if they differ."""
    machines = {row.label: " and ".join(row.machines) for row in rows if row.machines}
    if len(set(machines.values())) == 1:
        return next(iter(machines.values()))
    return "; ".join(f"{machine} ({label})" for label, machine in machines.items())
