"""The folder that results are written to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av

from dqdet.errors import DqdetError, Interrupted
from dqdet.formats.remote import public
from dqdet.formats.writing import move_files, unfinished_folder
from dqdet.predict.addresses import is_stream
from dqdet.runs.lock import held

RESULTS = ("results.json", "panoptic.json", "images.json", "videos.json")
DESCRIBING = RESULTS[2:]  # these say of which source and model the results are


@dataclass
class Output:
    """Where result files are written before they are put in their place.

    Attributes:
        folder: to write to.
        info: of which source and model the results are, for the files of `DESCRIBING`.
        done: what the files have so far, in words.
    """

    folder: Path
    info: dict[str, str]
    done: str = ""


def described(sources: Sequence[str | Path], model: str | Path | None) -> dict[str, str]:
    """What result files say of their source and, where it is known, of the model."""
    of_model = {} if model is None else {"model": str(Path(model).resolve() if Path(model).exists() else model)}
    return {"source": ", ".join(map(_named, sources)), **of_model}


@contextmanager
def results_folder(out: Path, sources: Sequence[str | Path], model: str | Path | None, force: bool) -> Iterator[Output]:
    """Hold the folder of results of ``sources``; result files are put there at the end.

    When the disk is full, or after Ctrl-C or SIGTERM, they are put there too, with what is done.

    Args:
        out: is made where it does not exist.
        sources: of the results, paths or addresses.
        model: where it comes from, if that is known.
        force: overwrite the results of other sources, or of another model.

    Raises:
        DqdetError: the folder is in use, has results of another source or model, or cannot be written to.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    output = Output(out, described(sources, model))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with held(out):
            if not force:
                _check_results(out, output.info)
            with unfinished_folder(out) as folder:
                output.folder = folder
                try:
                    yield output
                except (OSError, av.FFmpegError, KeyboardInterrupt, DqdetError):
                    if output.done:
                        move_files(folder, out)
                    raise
                move_files(folder, out)
    except KeyboardInterrupt as error:
        done = f"{output.done}: {out / RESULTS[0]}" if output.done else "nothing is done"
        raise Interrupted(f"stopped; {done}") from error
    except (OSError, av.FFmpegError) as error:
        done = f"; {output.done}: {out / RESULTS[0]}" if output.done else ""
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space{done}") from error


def _named(source: str | Path) -> str:
    source = str(source)
    return public(source) if "://" in source or is_stream(source) else str(Path(source).resolve())


def _check_results(out: Path, info: dict[str, str]) -> None:
    if not any((out / name).exists() for name in RESULTS):
        return
    known = [_info(out / name) for name in DESCRIBING if (out / name).exists()]
    sources = {str(one.get("source", "")) for one in known}
    # Files of older versions and of Python may not say of which model they are.
    models = {str(one["model"]) for one in known if "model" in one and "model" in info}
    if sources != {info["source"]}:
        other = ", ".join(sorted(source for source in sources if source)) or "an unknown source"
    elif models - {info.get("model")}:
        other = f"another model, {', '.join(sorted(models))}"
    else:
        return
    raise DqdetError(f"{out}: has the results of {other}; choose another folder, or overwrite them with --force")


def _info(file: Path) -> dict[str, object]:
    try:
        return dict(json.loads(file.read_text())["info"])
    except (ValueError, LookupError, TypeError):
        return {}
