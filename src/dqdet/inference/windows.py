"""Videos of any length: a window of frames goes through the model at a time, and tracks are joined between windows.

Neighbouring windows share some frames. A track goes on in the next window as the one of its class whose masks in the
shared frames overlap most with its own, all tracks together at the greatest total overlap; otherwise it ends, and
another one begins. Memory is bounded by the window, whatever the length of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dqdet.config import Config
from dqdet.formats.results import check_finite
from dqdet.formats.rle import encode
from dqdet.inference import infer
from dqdet.types import ClipTracks, Track

SHARED = 4  # frames that neighbouring windows have in common, or half a window where that is less
LEAST_IOU = 0.5  # in the shared frames, of two parts of a track


@dataclass
class WindowTracks:
    """The tracks in frames ``start .. start + T - 1`` of a video, best score in them first."""

    start: int
    ids: list[int]  # [K], the same for a track in all windows, none used twice
    tracks: ClipTracks  # of these T frames


def track(
    model: nn.Module, frames: Iterable[Tensor], original_size: tuple[int, int], config: Config
) -> Iterator[WindowTracks]:
    """The tracks of a video, window by window; each frame is in one of the results, in order.

    Args:
        model: of any family that learns ``data.task`` video, in evaluation mode.
        frames: ``[3, H, W]`` uint8, RGB, all of one size; read as they are needed.
        original_size: height and width of the results.
        config: of the model; ``config.inference.window`` frames go through it together.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))  # an exported one
    shared = min(SHARED, config.inference.window // 2)
    numbers = count()
    ids: list[int] = []
    before: ClipTracks | None = None  # the window before, in the frames that it shares
    start = 0
    for clip in windows(frames, config.inference.window, shared):
        _, _, height, width = clip.shape
        with torch.inference_mode():
            predictions = model(clip[None].to(device), torch.zeros(1, height, width, dtype=torch.bool, device=device))
        (tracks,) = infer(predictions, [(height, width)], [original_size], config)
        assert isinstance(tracks, ClipTracks)
        known = {} if before is None else {k: ids[row] for row, k in continued(before, tracks)}
        ids = [known[k] if k in known else next(numbers) for k in range(len(tracks.labels))]
        reported = 0 if before is None else shared  # frames
        yield WindowTracks(start + reported, ids, replace(tracks, masks=tracks.masks[:, reported:]))
        before = replace(tracks, masks=tracks.masks[:, len(clip) - shared :])
        start += len(clip) - shared


def windows(frames: Iterable[Tensor], size: int, shared: int) -> Iterator[Tensor]:
    """Clips ``[T, 3, H, W]`` of ``size`` frames (the last one: of what is left), with ``shared`` ones in common."""
    frames = iter(frames)
    clip = list(islice(frames, size))
    while clip:
        yield torch.stack(clip)
        more = list(islice(frames, size - shared))
        clip = [*clip[len(clip) - shared :], *more] if more else []


def continued(before: ClipTracks, after: ClipTracks) -> list[tuple[int, int]]:
    """Pairs of tracks of two windows that are the same track: rows in ``before`` and ``after``.

    Args:
        before: of a window, in the frames that it shares with the next.
        after: of the next window, which begins with these frames.
    """
    same_class = before.labels[:, None] == after.labels  # [K, K']
    overlap = (same_class * overlaps(before.masks, after.masks[:, : before.masks.shape[1]])).cpu().numpy()
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in pairs if overlap[row, column] >= LEAST_IOU]


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """IoU over all frames together, 0 of two empty tracks: ``[K, T, H, W], [K', T, H, W] -> [K, K']``."""
    both = torch.zeros(len(ours), len(theirs), device=ours.device)
    with torch.autocast(ours.device.type, enabled=False):  # half precision does not count so many pixels
        for a, b in zip(ours.unbind(1), theirs.unbind(1), strict=True):  # a frame at a time, to bound the memory
            both += a.flatten(1).float() @ b.flatten(1).float().T
    areas = ours.flatten(1).sum(1)[:, None] + theirs.flatten(1).sum(1)
    return both / (areas - both).clamp(min=1)


def best_tracks(windows: Iterable[WindowTracks], limit: int) -> list[Track]:
    """The ``limit`` best tracks of a whole video, best first, without those that are never visible.

    The score of a track is its mean over the frames of its windows. Of tracks that have ended, only as many are kept
    as may still be among the best.

    Args:
        windows: of the video, in order.
        limit: tracks at most.

    Raises:
        DqdetError: scores are not finite.
    """
    tracks: dict[int, Track] = {}  # that may go on
    seen: dict[int, int] = {}  # frames of the windows of each
    ended: list[Track] = []
    for window in windows:
        found = window.tracks
        scores = found.scores.tolist()
        check_finite(scores)
        going_on = {number: tracks.pop(number) for number in window.ids if number in tracks}
        ended = _best([*ended, *tracks.values()], limit)
        tracks = going_on
        for number, label, score, masks in zip(window.ids, found.labels.tolist(), scores, found.masks, strict=True):
            one = tracks.setdefault(number, Track(label, 0.0, {}))
            before, frames = seen.get(number, 0), len(masks)
            one.score = (before * one.score + frames * score) / (before + frames)
            seen[number] = before + frames
            visible = masks.flatten(1).any(1).nonzero()[:, 0]  # frames of the window
            one.masks.update(zip((visible + window.start).tolist(), encode(masks[visible]), strict=True))
    return _best([*ended, *tracks.values()], limit)


def _best(tracks: list[Track], limit: int) -> list[Track]:
    """Of tracks that have ended; what is not visible then never is."""
    return sorted((one for one in tracks if one.masks), key=lambda one: -one.score)[:limit]
