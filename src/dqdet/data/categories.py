"""The categories of COCO and YouTube-VIS, by their ids."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

# The 80 that have annotations. The ids have gaps, which torchvision's list fills.
COCO_CATEGORIES: dict[int, str] = {
    number: name
    for number, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}

# The regions of COCO's panoptic maps, whose objects are the categories above.
COCO_STUFF: dict[int, str] = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}

# Of the 2019 edition, whose ids have no gaps.
YOUTUBE_VIS_CATEGORIES: dict[int, str] = dict(
    enumerate(
        (
            "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train "
            "horse turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant "
            "snowboard boat shark mouse frog eagle earless_seal tennis_racket"
        ).split(),
        1,
    )
)
