"""``docs/gpu.md``: what was measured, beside what was aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from dqdet.errors import DqdetError
from gpu import check, clocks, sampling, speed, training
from gpu.measurements import Folder, Result, Setting
from timing import ratio

Row = Sequence[str]

# Aims for bf16.
FASTER = 2.0  # than transformers eager, at least
STEP_COST = 1.15  # of modulated over static queries in a step, at most; the paper has 1.13
INFERENCE_COST = 1.01  # the same at inference


def make_table(folder: Folder, setting: Setting, note: str = "") -> str:
    """The whole document.

    Raises:
        DqdetError: nothing has been measured.
    """
    sections = [make(folder, setting) for make in (checks, speeds, samplings, trainings)]
    if not any(sections):
        raise DqdetError(f"{folder.folder}: nothing measured yet, so no table; run the pieces first")
    origin = folder.origin
    dates = sorted(r["date"][:10] for r in every_result(folder))
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    size = " **Tiny sizes, to try the script: no speeds of anything.**" if setting.tiny else ""
    lines = [
        "# On a GPU",
        "",
        f"Measured on {origin['card']}, PyTorch {origin['torch']}, {days}.{size} Again: `make gpu`, which goes on with "
        "what is missing in `runs/gpu`; with an empty folder it measures everything anew. Times are medians; behind "
        "± is half of the range of the middle half.",
        *(["", note] if note else []),
        *(line for section in sections for line in section),
        "",
    ]
    return "\n".join(lines)


def every_result(folder: Folder) -> list[Result]:
    files = sorted(folder.folder.glob("*/*.json"))
    return [r for file in files if (r := folder.read(file.parent.name, file.stem)) is not None]


def markdown(header: Row, rows: Iterable[Row]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def failures(piece: str, folder: Folder, names: Iterable[str]) -> list[str]:
    """A line for every measurement that failed."""
    results = ((name, folder.read(piece, name)) for name in names)
    lines = [f"- {name}: {result['error']}" for name, result in results if result and "error" in result]
    return ["", "Could not be measured:", "", *lines] if lines else []


def milliseconds(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{1000 * seconds[0]:.3g}"
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{1000 * statistics.median(seconds):.3g} ± {500 * (high - low):.2g}"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def checks(folder: Folder, setting: Setting) -> list[str]:
    results = {m.name: folder.read("check", m.name) for m in check.measurements(setting)}
    found = {name: result for name, result in results.items() if result and "passed" in result}
    if not found:
        return failures("check", folder, results)
    rows = [
        (f"`tests/gpu/{name}.py`", str(result["passed"]), str(len(result["failures"])), str(len(result["skipped"])))
        for name, result in found.items()
    ]
    lines = ["", "## Tests on the device", "", *markdown(("", "passed", "failed", "skipped"), rows)]
    failed = [f"- `{test}`: {message}" for r in found.values() for test, message in r["failures"].items()]
    return lines + (["", *failed] if failed else [])


def speeds(folder: Folder, setting: Setting) -> list[str]:
    names = [m.name for m in speed.measurements(setting)]
    results = [r for name in names if (r := folder.read("speed", name)) and "seconds" in r]
    failed = failures("speed", folder, names)
    if not results:
        return failed
    peaks = (folder.read("speed", "peak") or {}).get("flops", {})
    against = [r for r in results if "flops" in r]  # of all kinds in turns
    sentences = [
        "A step is forward, loss and backward pass. Images are 800x1066 (Mask2Former: 800x1088, LW-DETR: 640x640, "
        "RF-DETR: 384x384), fp32 is with TF32, bf16 is autocast. Kinds of queries take turns; compiled "
        "models are timed alone.",
        "Shares of peak are of a large matrix product in that precision: "
        + ", ".join(f"{precision} {flops / 1e12:.3g} TFLOP/s" for precision, flops in peaks.items())
        + ". Sampling counts in the forward pass alone.",
    ]
    equal = [r["preset"] for name in names if (r := folder.read("speed", name)) and "equal" in r]
    if equal:
        sentences.append(f"Outputs were checked equal in float32 on the device: {', '.join(equal)}.")
    header = ("preset", "precision", "batch", "task", "model", "ms", "images/s", "share of peak", "peak MiB")
    rows = [row for result in results for row in speed_rows(result, peaks)]
    return ["", "## Speed", "", *sentences, *aims(against), "", "### All times", "", *markdown(header, rows), *failed]


def speed_rows(result: Result, peaks: dict[str, float]) -> Iterable[Row]:
    compiled = ", compiled" if "first_run_s" in result else ""
    for kind, seconds in result["seconds"].items():
        median = statistics.median(seconds)
        flops = result.get("flops", {}).get(kind)
        peak = peaks.get(result["precision"])
        yield (
            result["preset"],
            result["precision"],
            str(result["batch"]),
            result["task"],
            kind + compiled,
            milliseconds(seconds),
            "" if kind == speed.QUERIES else f"{result['batch'] / median:.3g}",
            f"{flops / median / peak:.1%}" if flops and peak else "",
            mebibytes(result["peak_mib"].get(kind)),
        )


# Label, whether of seconds or of peak memory, the kinds that are divided by one another, and the aim by task.
THEIRS = speed.THEIRS
RATIOS: list[tuple[str, str, str, str, dict[str, tuple[str, float]]]] = [
    ("`transformers` / static", "seconds", THEIRS, "static", dict.fromkeys(speed.TASKS, ("≥", FASTER))),
    ("`transformers` / modulated", "seconds", THEIRS, "modulated", {}),
    (
        "modulated / static",
        "seconds",
        "modulated",
        "static",
        {"inference": ("≤", INFERENCE_COST), "step": ("≤", STEP_COST)},
    ),
    ("queries alone / modulated", "seconds", speed.QUERIES, "modulated", {}),
    ("memory, static / `transformers`", "peak_mib", "static", THEIRS, dict.fromkeys(speed.TASKS, ("≤", 1.0))),
    ("memory, modulated / `transformers`", "peak_mib", "modulated", THEIRS, dict.fromkeys(speed.TASKS, ("≤", 1.0))),
]


def aims(results: Sequence[Result]) -> list[str]:
    """Ratios of what took turns, beside their aims."""
    header = ("preset", "precision", "batch", "task", *(label for label, *_ in RATIOS))
    rows = [
        (r["preset"], r["precision"], str(r["batch"]), r["task"], *(ratio_cell(r, *which) for _, *which in RATIOS))
        for r in results
    ]
    return ["", "### Ratios", "", "Aims, in brackets, are for bf16; bold: missed.", "", *markdown(header, rows)]


def ratio_cell(result: Result, of: str, first: str, second: str, aim: dict[str, tuple[str, float]]) -> str:
    one, other = (result[of].get(kind) for kind in (first, second))
    if one is None or other is None:
        return ""
    value = ratio(one, other) if of == "seconds" else one / other
    if result["precision"] != "bf16" or result["task"] not in aim:
        return f"{value:.3f}"
    sign, limit = aim[result["task"]]
    met = value >= limit if sign == "≥" else value <= limit
    return f"{value:.3f} ({sign} {limit:g})" if met else f"**{value:.3f}** ({sign} {limit:g})"


def samplings(folder: Folder, setting: Setting) -> list[str]:
    names = [m.name for m in sampling.measurements(setting)]
    results = [r for name in names if (r := folder.read("sampling", name)) and "seconds" in r]
    failed = failures("sampling", folder, names)
    if not results:
        return failed
    copy = (folder.read("sampling", "copy") or {}).get("bytes_per_s")
    about = "Maps of an image of 800x1066 in four levels, 8 heads of 32 channels, 4 points; each time is of a call "
    about += f"among {clocks.IN_A_ROW} in a row. Bandwidth is the size of all inputs and outputs by the kernel's time"
    about += f"; a copy on the device reaches {copy / 1e9:.0f} GB/s." if copy else "."
    header = ("who", "precision", "batch", "pass", "kernel, ms", "`grid_sample`, ms", "ratio", "GB/s", "of a copy")
    header += ("peak MiB, kernel", "peak MiB, `grid_sample`")
    rows = [row for result in results for row in sampling_rows(result, copy)]
    return ["", "## Sampling alone", "", about, "", *markdown(header, rows), *failed]


def sampling_rows(result: Result, copy: float | None) -> Iterable[Row]:
    for direction in ("forward", "backward"):
        kernel, reference = (result["seconds"][f"{direction}, {way}"] for way in sampling.WAYS)
        bandwidth = result["bytes"][direction] / statistics.median(kernel)
        yield (
            result["who"],
            result["precision"],
            str(result["batch"]),
            direction,
            milliseconds(kernel),
            milliseconds(reference),
            f"{ratio(reference, kernel):.2f}",
            f"{bandwidth / 1e9:.0f}",
            f"{bandwidth / copy:.0%}" if copy else "",
            *(mebibytes(result["peak_mib"][way]) for way in sampling.WAYS),
        )


def trainings(folder: Folder, setting: Setting) -> list[str]:
    names = [m.name for m in training.measurements(setting)]
    results = [r for name in names if (r := folder.read("training", name)) and "images_per_s" in r]
    failed = failures("training", folder, names)
    if not results:
        return failed
    about = "Generated scenes, through `dqdet.train`: " + "; ".join(
        f"{r['preset']}, {r['steps']} steps of {r['batch']} images of {r['size']} pixels, {r['precision']}, "
        f"{r['workers']} workers"
        for r in results
    )
    about += f". Bound by the loader: over {training.WAITS:.0%} of the time goes into waiting for it."
    header = ("preset", "images/s", "of the steps alone", "of the loader alone", "waiting for the loader", "bound by")
    rates = ("images_per_s", "images_per_s_of_steps", "images_per_s_of_loader")
    rows = [(r["preset"], *(f"{r[rate]:.0f}" for rate in rates), f"{r['waiting']:.1%}", r["bound_by"]) for r in results]
    return ["", "## Training", "", about, "", *markdown(header, rows), *failed]
