"""Results of a whole data set of videos, as the evaluation server of YouTube-VIS takes them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from dqdet.config import Overrides, override_some
from dqdet.data import check_files, open_dataset
from dqdet.data.clips import VideoDataset
from dqdet.data.loader import VideoLoader
from dqdet.errors import DqdetError
from dqdet.formats.results import StoredResults, video_results
from dqdet.formats.writing import check_place, remove_unfinished, unfinished_folder
from dqdet.inference.windows import best_tracks, track
from dqdet.predict.predictor import Predictor
from dqdet.predict.progress import in_progress
from dqdet.runs.folder import MEASURED, NO_CATEGORY, NOT_MEASURED, load_config, load_folder, match_classes

SUBMITTED = (*MEASURED, "data.workers", "data.check")  # options that matter to a submission


def submit(run: str | Path, file: str | Path, overrides: Overrides = (), force: bool = False) -> None:
    """Find the tracks in all videos of the validation split, which needs no annotations, and write them.

    Args:
        run: folder of a run, or one of its files, as for `load_folder`.
        file: the ZIP file to write, with ``results.json`` in it.
        overrides: of the run's configuration, for example ``data.val=valid`` or ``data.root``; of `SUBMITTED`.
        force: overwrite a file that exists.

    Raises:
        DqdetError: the run is none of a video model, the data is at fault, an option would have no effect, or the file
            exists or cannot be written.
    """
    if os.path.exists(file) and not force:
        raise DqdetError(f"{file}: exists already; choose another name, or overwrite it with --force")
    config = override_some(load_config(Path(run)), overrides, SUBMITTED, NOT_MEASURED)
    if config.data.task != "video":
        raise DqdetError(f"{run}: is of data.task={config.data.task}; only results of data.task=video are submitted so")
    check_place(Path(file))
    model, _ = load_folder(Path(run))
    dataset = open_dataset(config.data, "val", config.train.seed)
    assert isinstance(dataset, VideoDataset)
    place = f"data.root={config.data.root}" if config.data.root else f"data.kind={config.data.kind}"
    category_ids = match_classes(config, dataset.classes, dataset.category_ids, place)
    if config.data.check:
        check_files([dataset])
    write_submission(Predictor(model, config.model_copy(update={"category_ids": category_ids})), dataset, Path(file))


def write_submission(predictor: Predictor, dataset: VideoDataset, file: Path) -> None:
    """The same for a predictor whose ``category_ids`` are those of the data set."""
    config = predictor.config
    results = StoredResults()
    videos = VideoLoader(dataset, config.data.workers)
    for video in in_progress(videos, "finding tracks", len(videos)):
        (target,) = video.targets
        windows = track(predictor.model, video.frames, target.original_size, config)
        tracks = best_tracks(windows, config.inference.limit)
        tracks = [one for one in tracks if predictor.category_ids[one.label] != NO_CATEGORY]
        length = target.boxes.shape[1]
        results[target.image_id] = video_results(target.image_id, tracks, length, predictor.category_ids)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(file.parent)
        with unfinished_folder(file.parent) as folder:
            document, packed = folder / "results.json", folder / "results.zip"
            results.write(document)
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(document, document.name)
            packed.replace(file)
    except OSError as error:
        raise DqdetError(f"{file}: cannot be written ({error.strerror}); choose another place or make space") from error
