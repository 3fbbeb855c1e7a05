"""Figure 1: AP against the number of queries, and the operations of the decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dqdet.config import Config
from dqdet.models import create_model
from dqdet.nn.flops import decoder_flops
from dqdet.runs.folder import without_pretraining
from dqdet.studies.comparison import MODULATED, STATIC, Arm, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector

SHARES = (1 / 3, 2 / 3, 1.0)  # of the configured number of queries: 100, 200 and 300 in the paper
CLASSES = 80  # of the counted decoder, where the data's are not known yet; the difference is below 1 %


def arms(config: Config) -> Mapping[str, Arm]:
    """Fewer and fewer queries, static and modulated: compared with the most static ones, and with as many."""
    counts = sorted({max(1, round(share * config.queries.count)) for share in SHARES}, reverse=True)
    found = {}
    for count in counts:
        static, modulated = ({**arm.options, "queries.count": count} for arm in (STATIC, MODULATED))
        found[f"{count} static"] = Arm(static, "static", count)
        found[f"{count} modulated"] = Arm(modulated, "modulated", count, control=f"{count} static")
    return found


def operations(config: Config) -> dict[str, float]:
    """Of everything after the encoder, for one validation image (or clip), additional parts of our method included."""
    config = without_pretraining(config)
    config.classes = config.classes or [str(number) for number in range(CLASSES)]
    side = config.data.val_resize
    frames = (config.data.clips.frames,) if config.data.task == "video" else ()
    model = create_model(config).eval()
    flops = decoder_flops(model, torch.zeros(1, *frames, 3, side, side), torch.zeros(1, side, side, dtype=torch.bool))
    return {"decoder GFLOPs": flops / 1e9}


PAPER = {
    DEFORMABLE_DETR: {"300 static": {"AP": 0.462}, "300 modulated": {"AP": 0.470}},
    "dab_deformable_detr_r50": {"300 static": {"AP": 0.481}, "300 modulated": {"AP": 0.497}},
}

run = Comparison(
    title="The number of queries",
    own={
        "Deformable-DETR": detector(DEFORMABLE_DETR),
        "DAB-Deformable-DETR": detector("dab_deformable_detr_r50"),
    },
    arms=arms,
    paper=PAPER,
    figure="places",
    axis="queries",
    also=operations,
).run
