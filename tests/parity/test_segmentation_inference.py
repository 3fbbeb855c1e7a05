"""Instances, panoptic and semantic maps and tracks equal to those of the official models, from the same predictions."""

import pytest
import torch
from recorded import Recorded
from torch import Tensor

from dqdet.config import Config
from dqdet.inference import infer
from dqdet.inference.masks import semantic_scores
from dqdet.nn.product_masks import ProductMasks
from dqdet.types import Predictions

IMAGES = ["mask2former", "mask2former_dq"]
VIDEOS = ["video_mask2former", "video_mask2former_dq"]


class Case(Recorded):
    @property
    def sizes(self) -> tuple[list, list]:
        return self.config["infer_image_sizes"], self.config["infer_output_sizes"]

    def predictions(self, prefix: str = "") -> Predictions:
        """Such that the masks are the recorded ones: each query's embedding chooses one channel."""
        logits, masks = self.io[f"{prefix}pred_logits"], self.io[f"{prefix}pred_masks"]
        queries = masks.shape[2]
        embeddings = torch.eye(queries).expand(*masks.shape[:2], -1, -1)
        features = masks[-1] if masks.ndim == 5 else masks[-1].transpose(1, 2)  # [B, (T,) Q, h, w]
        return Predictions(logits, None, {"static": queries}, ProductMasks(embeddings, features))

    def inference(self, family: str, task: str, loss: str, stuff: bool = False) -> Config:
        classes = [str(label) for label in range(self.config["num_classes"])]
        return Config.model_validate(
            {
                "preset": "",
                "model": {"family": family},
                "loss": {"kind": loss},
                "data": {"kind": "scenes", "task": task},
                "inference": {
                    "limit": 10,
                    "object_threshold": self.config.get("object_mask_threshold", 0),
                    "overlap_threshold": self.config.get("overlap_threshold", 0),
                },
                "classes": classes,
                "category_ids": range(len(classes)),
                "stuff": classes[self.config["num_thing_classes"] :] if stuff else [],
            }
        )


@pytest.fixture
def recorded(request, shared) -> Case:
    return Case.read(shared / "parity" / request.param)


def same(labels: Tensor, scores: Tensor, masks: Tensor, io: dict[str, Tensor], name: str) -> None:
    """Best first, and the recorded ones apart from their order."""
    order = io[f"{name}.scores"].argsort(descending=True)
    torch.testing.assert_close(scores, io[f"{name}.scores"][order])
    assert labels.tolist() == io[f"{name}.labels"][order].tolist()
    if f"{name}.masks" in io:
        assert torch.equal(masks, io[f"{name}.masks"][order].bool())


@pytest.mark.parametrize("recorded", IMAGES, indirect=True)
def test_instances(recorded):
    config = recorded.inference("mask2former", "instance", "masks")
    for i, found in enumerate(infer(recorded.predictions(), *recorded.sizes, config)):
        same(found.labels, found.scores, torch.from_numpy(found.masks.decoded()), recorded.io, f"post.instance.{i}")


@pytest.mark.parametrize("recorded", IMAGES, indirect=True)
def test_panoptic_models(recorded):
    config = recorded.inference("mask2former", "panoptic", "masks", stuff=True)
    predictions = recorded.predictions()
    for i, found in enumerate(infer(predictions, *recorded.sizes, config)):
        things = found.instances
        masks = torch.from_numpy(things.masks.decoded())
        same(things.labels, things.scores, masks, recorded.io, f"post.instance_things_only.{i}")
        assert found.panoptic.ids.tolist() == recorded.io[f"post.panoptic.{i}"].tolist()
        segments = recorded.expected["panoptic_segments_info"][str(i)]
        for segment, expected in zip(found.panoptic.segments, segments, strict=True):
            assert (segment["id"], segment["category_id"]) == (expected["id"], expected["category_id"])
            assert 0 < segment["score"] <= 1
    size, original_size = (sizes[0] for sizes in recorded.sizes)
    scores = semantic_scores(predictions.final, 0, size, original_size, slice(0, len(config.classes)))
    torch.testing.assert_close(scores, recorded.io["post.semantic.0"])


@pytest.mark.parametrize("recorded", VIDEOS, indirect=True)
def test_tracks_of_mask2former(recorded):
    config = recorded.inference("video_mask2former", "video", "masks")
    (found,) = infer(recorded.predictions("infer."), *recorded.sizes, config)
    same(found.labels, found.scores, found.masks, recorded.io, "infer.post")


@pytest.mark.parametrize("recorded", ["seqformer"], indirect=True)
def test_tracks_of_seqformer(recorded):
    options = recorded.config
    config = recorded.inference("seqformer", "video", "sequences")
    (found,) = infer(recorded.predictions("infer."), [options["infer_size"]], [options["infer_output_size"]], config)
    seen = recorded.io["infer.post.masks"].bool().flatten(1).any(1)
    assert not seen.all()  # the official script skips these when it writes its results
    expected = {name: recorded.io[f"infer.post.{name}"][seen] for name in ("scores", "labels", "masks")}
    same(found.labels, found.scores, found.masks, {f"seen.{name}": value for name, value in expected.items()}, "seen")
