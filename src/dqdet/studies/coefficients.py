"""Figure 4: what the combination coefficients W know of the image, as a picture and in numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dqdet.config import Config
from dqdet.data import open_dataset
from dqdet.data.loader import collate
from dqdet.data.scenes.images import ScenesDataset
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.queries import pool
from dqdet.studies.comparison import MODULATED
from dqdet.studies.report import Report, table
from dqdet.studies.request import Request
from dqdet.studies.small import detector
from dqdet.studies.trained import examined, opened

IMAGES = 200  # as in the paper
FOLDS = 5
LEAST = 5  # images on both sides, for a probe to be trained
THUMBNAIL = 40  # pixels, longer side
OWN = {"DAB-DETR": detector("dab_detr_r50")}  # the paper's model


@dataclass(frozen=True)
class Seen:
    """What a model made of images, and what is in them."""

    coefficients: np.ndarray  # [B, m, r]
    contexts: np.ndarray  # [B, C], pooled
    present: np.ndarray  # [B, classes] bool
    kinds: list[str] | None  # of the scenes
    thumbnails: list[np.ndarray]  # [h, w, 3] uint8


@dataclass(frozen=True)
class Knowledge:
    """Numbers of a model's W; accuracies are balanced over classes, of a cross-validated linear probe."""

    images: int
    between: float  # share of W's variance around even coefficients that is between images
    entropy: float | None  # mean of the rows of W, in 0..1 of the greatest; None: they are no distributions
    changing: float  # share of images in which a query's largest coefficient is not its usual one
    scene_from_w: float | None
    scene_from_context: float | None
    scene_chance: float | None
    classes_from_w: float | None
    classes_from_context: float | None


def run(request: Request) -> Report:
    """Analyse W over validation images.

    Raises:
        DqdetError: as `dqdet.studies.study`, or the model has no coefficients that depend on the image.
    """
    rows, results, sentences, figure = [], {}, [], None
    for one in examined(request, OWN, MODULATED, seeds=1):
        model, config = opened(one, request)
        try:
            seen = look(model, config)
        except DqdetError as error:
            raise DqdetError(f"{one.source}: {error}") from error
        known = knowledge(seen)
        results[one.source] = asdict(known)
        numbers = [getattr(known, name) for name in list(asdict(known))[1:]]
        rows.append([one.label, str(known.images), *("-" if value is None else f"{value:.3f}" for value in numbers)])
        sentences += _sentences(one.label, known)
        figure = figure or picture(seen)
        request.say(f"{one.label}: {known.images} images")
    header = ["model", "images", "variance between images", "entropy", "changing largest"]
    header += ["scene from W", "scene from context", "scene by chance", "classes from W", "classes from context"]
    return Report(
        title="What the coefficients know of the image",
        results=results,
        tables=[table(header, rows)],
        note="Variance is that around even coefficients; entropy is relative to the greatest; accuracies are balanced, "
        "of a cross-validated logistic regression, and those of classes are means over classes, where chance is 0.5.",
        learned=sentences,
        figure=figure,
    )


@torch.inference_mode()
def look(model: Detector, config: Config, images: int = IMAGES) -> Seen:
    """W, pooled contexts and labels of the first validation images (or the first frames of videos).

    Raises:
        DqdetError: the model's coefficients are none, or the same for all images.
    """
    if config.queries.kind not in ("modulated", "shared") or config.queries.context == "none":
        raise DqdetError(
            f"queries.kind={config.queries.kind} with queries.context={config.queries.context} has no coefficients "
            "that depend on the image"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    dataset = open_dataset(config.data, "val", config.train.seed)
    read: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and padding, as the source of queries got them
    hook = model.queries.register_forward_pre_hook(lambda _, given: read.append((given[0], given[1])))  # type: ignore[union-attr]
    coefficients, contexts, present, thumbnails = [], [], [], []
    indices = range(min(images, len(dataset)))
    for index in indices:
        batch = collate([dataset[index]], size=dataset.padded_size)
        if batch.images.dim() == 5:
            batch.images = batch.images[:, : config.inference.window]
        found = model(batch.images.to(device), batch.padding.to(device)).coefficients
        coefficients.append(found[0].float().cpu().numpy())
        features, padding = read.pop()
        contexts.append(pool(features, padding, config.queries.pool, config.queries.pool_padding)[0].cpu().numpy())
        labels = batch.targets[0].labels.tolist()
        present.append(np.isin(np.arange(len(config.classes)), labels))
        pixels = batch.images[0] if batch.images.dim() == 4 else batch.images[0, 0]  # [3, H, W]
        thumbnails.append(_thumbnail(pixels.permute(1, 2, 0).numpy()))
    hook.remove()
    kinds = [dataset.kind(index) for index in indices] if isinstance(dataset, ScenesDataset) else None
    return Seen(np.stack(coefficients), np.stack(contexts), np.stack(present), kinds, thumbnails)


def knowledge(seen: Seen) -> Knowledge:
    """The numbers that the picture does not say."""
    w = seen.coefficients  # [B, m, r]
    # Around 1 / r, the variance is that of the mean over images and that around this mean.
    whole = ((w - 1 / w.shape[-1]) ** 2).sum()
    between = ((w - w.mean(0)) ** 2).sum()
    convex = bool((w >= 0).all())  # raw coefficients are not
    entropy = -(w * np.log(np.clip(w, 1e-12, None))).sum(-1).mean() / np.log(max(w.shape[-1], 2))
    largest = w.argmax(-1)  # [B, m]
    usual = np.array([np.bincount(column).argmax() for column in largest.T])  # [m]
    scenes = {"W": None, "context": None} if seen.kinds is None else _both(seen, np.array(seen.kinds))
    of_classes = [_both(seen, column) for column in seen.present.T]
    return Knowledge(
        images=len(w),
        between=float(between / whole) if whole else 0.0,
        entropy=float(entropy) if convex else None,
        changing=float((largest != usual).mean()),
        scene_from_w=scenes["W"],
        scene_from_context=scenes["context"],
        scene_chance=None if scenes["W"] is None or seen.kinds is None else 1 / len(_frequent(np.array(seen.kinds))),
        classes_from_w=_mean([found["W"] for found in of_classes]),
        classes_from_context=_mean([found["context"] for found in of_classes]),
    )


def probe(features: np.ndarray, labels: np.ndarray) -> float | None:
    """How well a logistic regression reads labels from features: balanced accuracy, cross-validated.

    Args:
        features: ``[B, f]``.
        labels: ``[B]``; those of fewer than ``LEAST`` images are left out.

    Returns:
        None, if fewer than two labels are left. Chance is one over their number.
    """
    frequent = _frequent(labels)
    if len(frequent) < 2:
        return None
    kept = np.isin(labels, frequent)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(reader, features[kept], labels[kept], cv=folds, scoring="balanced_accuracy")
    return float(scores.mean())


def _frequent(labels: np.ndarray) -> np.ndarray:
    names, counts = np.unique(labels, return_counts=True)
    return names[counts >= LEAST]


def _both(seen: Seen, labels: np.ndarray) -> Mapping[str, float | None]:
    flat = seen.coefficients.reshape(len(seen.coefficients), -1)
    return {"W": probe(flat, labels), "context": probe(seen.contexts, labels)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sentences(label: str, known: Knowledge) -> list[str]:
    sentences = [
        f"{label}: {known.between:.0%} of the variance of W around even coefficients lies between images; the largest "
        f"coefficient of a query is another one than usual in {known.changing:.0%} of the images."
    ]
    if known.scene_from_w is not None:
        sentences.append(
            f"{label}: a linear probe reads the kind of scene from W with a balanced accuracy of "
            f"{known.scene_from_w:.3f}, from the pooled context with {known.scene_from_context:.3f}; chance is "
            f"{known.scene_chance:.3f}."
        )
    if known.classes_from_w is not None:
        sentences.append(
            f"{label}: whether a class is present, with {known.classes_from_w:.3f} and "
            f"{known.classes_from_context:.3f}; chance is 0.500."
        )
    return sentences


def picture(seen: Seen) -> Figure | None:
    """t-SNE of W with the images at their places, framed by the kind of scene; None for fewer than three images."""
    count = len(seen.coefficients)
    if count < 3:
        return None
    flat = seen.coefficients.reshape(count, -1)
    perplexity = min(30.0, (count - 1) / 3)
    places = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(flat)  # [B, 2]
    figure = Figure((9, 9), layout="constrained")
    axes = figure.subplots()
    kinds = seen.kinds or [""] * count
    for number, kind in enumerate(dict.fromkeys(kinds)):
        chosen = [index for index in range(count) if kinds[index] == kind]
        axes.scatter(places[chosen, 0], places[chosen, 1], s=1, color=f"C{number}", label=kind or None)
        for index in chosen:
            shown = OffsetImage(seen.thumbnails[index], zoom=0.6)
            frame = {"edgecolor": f"C{number}"}
            axes.add_artist(AnnotationBbox(shown, tuple(places[index]), pad=0.1, bboxprops=frame))
    axes.set(xticks=[], yticks=[])
    if seen.kinds is not None:
        axes.legend(markerscale=8)
    return figure


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)
