import inspect
from importlib.resources import files

import pytest
import timm
import yaml

from dqdet.config import (
    Config,
    describe,
    for_trained_weights,
    from_yaml,
    override,
    preset_names,
    resolve,
    to_yaml,
    total_steps,
)
from dqdet.config import presets as configuration
from dqdet.config.families import DabDeformableDetrConfig, DeformableDetrConfig, SeqFormerConfig, TransformerConfig
from dqdet.config.section import Section
from dqdet.errors import DqdetError
from dqdet.training.optimiser import learning_rate_factor

PRESETS = preset_names()


def options(config: Config) -> dict:
    def flat(section: dict, prefix: str = "") -> dict:
        return {
            path: leaf
            for key, value in section.items()
            for path, leaf in (
                flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
            ).items()
        }

    return flat(config.model_dump())


def message(*arguments) -> str:
    with pytest.raises(DqdetError) as caught:
        resolve(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_promised_presets_exist():
    promised = {
        "detr_r50",
        "deformable_detr_r50",
        "deformable_detr_r50_refine",
        "deformable_detr_swin_b",
        "scenes_tiny",
        "scenes_tiny_panoptic",
        "scenes_tiny_video",
        "video_mask2former_r50",
        "video_mask2former_swin_b",
        *(
            f"mask2former_{backbone}_{data}_{task}"
            for backbone in ("r50", "swin_b")
            for data in ("coco", "cityscapes")
            for task in ("instance", "panoptic")
        ),
    }
    assert promised <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_described_in_one_line_and_print_what_they_resolve_to(name):
    assert describe(name)
    assert "\n" not in describe(name)
    config = resolve(name)
    assert config.preset == name
    assert from_yaml(to_yaml(config), "x") == config
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")


# From the main programs, start scripts and read-me files of the published repositories.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "detr_r50",
            {
                "train.epochs": 500,
                "train.drop": [400],
                "train.batch": 64,
                "train.lr": 1e-4,
                "train.backbone_lr": 1e-5,
                "train.weight_decay": 1e-4,
                "train.clip": 0.1,
                "queries.count": 100,
                "loss.classification": "cross_entropy",
                "loss.class_cost": 1,
                "loss.class_weight": 1,
                "loss.box_weight": 5,
                "loss.giou_weight": 2,
                "loss.no_object_weight": 0.1,
                "model.feedforward": 2048,
            },
        ),
        (
            "deformable_detr_r50",
            {
                "train.epochs": 50,
                "train.drop": [40],
                "train.batch": 32,
                "train.lr": 2e-4,
                "train.backbone_lr": 2e-5,
                "train.offsets_lr": 2e-5,
                "train.weight_decay": 1e-4,
                "train.clip": 0.1,
                "queries.count": 300,
                "loss.classification": "focal",
                "loss.class_cost": 2,
                "loss.class_weight": 2,
                "model.feedforward": 1024,
                "model.levels": 4,
                "model.points": 4,
                "model.refine": False,
            },
        ),
        ("deformable_detr_r50_refine", {"model.refine": True, "train.batch": 32, "model.backbone.name": "resnet50"}),
        ("deformable_detr_swin_b", {"model.refine": True, "train.epochs": 50, "model.backbone.name": "swin_b"}),
        (
            "dino_r50",
            {
                "train.epochs": 12,
                "train.drop": [11],
                "train.batch": 16,
                "train.lr": 1e-4,
                "train.backbone_lr": 1e-5,
                "train.offsets_lr": 1e-4,
                "train.weight_decay": 1e-4,
                "train.decay_norms": True,
                "train.clip": 0.1,
                "train.ema": None,
                "model.dropout": 0,
                "model.feedforward": 2048,
                "queries.count": 900,
                "queries.denoising": 100,
                "loss.class_weight": 1,
            },
        ),
        ("dino_r50_24ep", {"train.epochs": 24, "train.drop": [20]}),
        ("dino_r50_36ep", {"train.epochs": 36, "train.drop": [30]}),
        ("dino_r50_5scale", {"train.epochs": 12, "train.drop": [11], "model.levels": 5, "model.finest": 4}),
        ("dino_r50_5scale_24ep", {"train.epochs": 24, "train.drop": [20], "model.levels": 5}),
        ("dino_r50_5scale_36ep", {"train.epochs": 36, "train.drop": [30], "model.levels": 5}),
        ("dino_swin_l", {"train.epochs": 12, "train.drop": [11], "model.levels": 4, "model.backbone.name": "swin_l"}),
        ("dino_swin_l_36ep", {"train.epochs": 36, "train.drop": [30], "model.backbone.drop_path": 0.2}),
    ],
)
def test_presets_are_the_published_recipes(name, published):
    resolved = options(resolve(name))
    assert {path: resolved[path] for path in published} == published
    assert resolved["queries.kind"] == "modulated"
    assert resolved["data.resize"] == list(range(480, 801, 32))
    assert resolved["data.max_size"] == 1333


MASK2FORMER = {
    "model.decoder_layers": 9,
    "model.encoder_layers": 6,
    "model.feedforward": 2048,
    "model.dropout": 0,
    "queries.count": 100,
    "loss.class_weight": 2,
    "loss.mask_weight": 5,
    "loss.dice_weight": 5,
    "loss.no_object_weight": 0.1,
    "loss.points": 12544,
    "loss.oversample": 3,
    "loss.important": 0.75,
    "inference.object_threshold": 0.8,
    "inference.overlap_threshold": 0.8,
    "data.crop": False,
    "train.batch": 16,
    "train.lr": 1e-4,
    "train.backbone_lr": 1e-5,
    "train.weight_decay": 0.05,
    "train.decay_norms": False,
    "train.clip": 0.01,
    "train.precision": "16-mixed",
}
COCO = MASK2FORMER | {
    "data.kind": "coco",
    "data.jitter": (0.1, 2),
    "data.window": (1024, 1024),
    "train.steps": 368_750,
    "train.drop_steps": [327_778, 355_092],
}
CITYSCAPES = MASK2FORMER | {
    "data.kind": "cityscapes",
    "data.jitter": None,
    "data.window": (512, 1024),
    "data.resize": [int(factor * 0.1 * 1024) for factor in range(5, 21)],
    "data.max_size": 4096,
    "data.val_resize": 1024,
    "data.colour": True,
    "data.hue": 18 / 180,
    "data.permute_channels": False,
    "train.steps": 90_000,
    "train.schedule": "poly",
    "train.power": 0.9,
}
SWIN_B = {"model.backbone.name": "swin_b", "model.backbone.drop_path": 0.3}
VIDEO = MASK2FORMER | {
    "data.kind": "youtube_vis",
    "data.task": "video",
    "data.resize": [360, 480],
    "data.clips.frames": 2,
    "data.clips.reach": 20,
    "data.skip_empty": False,
    "data.colour": False,
    "train.steps": 6000,
    "inference.limit": 10,
}
SWIN_L = {"queries.count": 200, "train.steps": 737_500, "train.drop_steps": [655_556, 710_184]}
INSTANCE = {"data.task": "instance", "data.skip_empty": True}  # FILTER_EMPTY_ANNOTATIONS
PANOPTIC = {"data.task": "panoptic", "data.skip_empty": False}  # which detectron2 does for lists of instances alone


# From the configuration files of the published repository.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mask2former_r50_coco_instance", COCO | INSTANCE | {"model.backbone.name": "resnet50"}),
        ("mask2former_r50_coco_panoptic", COCO | PANOPTIC),
        ("mask2former_swin_b_coco_instance", COCO | SWIN_B | INSTANCE),
        ("mask2former_swin_b_coco_panoptic", COCO | SWIN_B | PANOPTIC),
        ("mask2former_r50_cityscapes_instance", CITYSCAPES | {"data.task": "instance"}),
        ("mask2former_r50_cityscapes_panoptic", CITYSCAPES | {"data.task": "panoptic"}),
        ("mask2former_swin_b_cityscapes_instance", CITYSCAPES | SWIN_B | {"data.task": "instance"}),
        ("mask2former_swin_b_cityscapes_panoptic", CITYSCAPES | SWIN_B | {"data.task": "panoptic"}),
        ("mask2former_swin_l_coco_instance", COCO | INSTANCE | SWIN_L),
        ("mask2former_swin_l_coco_panoptic", COCO | PANOPTIC | SWIN_L),
        ("video_mask2former_r50", VIDEO | {"data.val_resize": 360}),
        ("video_mask2former_swin_b", VIDEO | SWIN_B | {"data.val_resize": 480}),
    ],
)
def test_presets_of_masks_are_the_published_recipes(name, published):
    resolved = options(resolve(name))
    assert {path: resolved[path] for path in published} == published
    assert resolved["queries.kind"] == "modulated"


# Images, or videos, of the training splits: of COCO with objects that are no crowds, and all.
WITH_OBJECTS, COCO_IMAGES, CITYSCAPES_IMAGES, VIDEOS = 117_266, 118_287, 2975, 2238


@pytest.mark.parametrize(
    ("name", "steps", "drops", "images"),
    [
        ("mask2former_r50_coco_instance", 368_750, [327_778, 355_092], WITH_OBJECTS),
        ("mask2former_r50_coco_panoptic", 368_750, [327_778, 355_092], COCO_IMAGES),
        ("mask2former_swin_l_coco_instance", 737_500, [655_556, 710_184], WITH_OBJECTS),
        ("mask2former_swin_l_coco_panoptic", 737_500, [655_556, 710_184], COCO_IMAGES),
        ("video_mask2former_r50", 6000, [4000], VIDEOS),
        ("mask2former_r50_cityscapes_panoptic", 90_000, [], CITYSCAPES_IMAGES),
        ("detr_r50", 500 * (COCO_IMAGES // 64), [400 * (COCO_IMAGES // 64)], COCO_IMAGES),
        ("deformable_detr_r50", 50 * (COCO_IMAGES // 32), [40 * (COCO_IMAGES // 32)], COCO_IMAGES),
    ],
)
def test_trainings_have_the_published_steps_and_rates_drop_at_the_published_ones(name, steps, drops, images):
    options = resolve(name).train
    steps_per_epoch = images // options.batch
    assert (options.epochs is None) != (options.steps is None)
    assert total_steps(options, steps_per_epoch) == steps
    factor = learning_rate_factor(options, steps_per_epoch)
    if options.schedule == "poly":
        assert factor(steps - 1) > factor(steps) == 0
    for number, drop in enumerate(drops):
        assert (factor(drop - 1), factor(drop)) == pytest.approx((0.1**number, 0.1 ** (number + 1)))
    if options.schedule == "steps":
        assert factor(steps) == pytest.approx(0.1 ** len(drops))


def test_drops_are_in_epochs_or_in_steps_but_not_in_both():
    text = message("video_mask2former_r50", ["train.drop=[3]"])
    assert "train.drop=[3.0] (epochs) and train.drop_steps=[4000] are both set" in text
    assert "train.drop_steps=[]" in text
    assert resolve("video_mask2former_r50", ["train.drop=[3]", "train.drop_steps=[]"]).train.drop == [3]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("dab_detr_r50", 300),  # num_select
        ("dab_deformable_detr_r50", 300),
        ("dab_deformable_detr_swin_b", 300),
        ("dino_r50", 300),
        ("smca_detr_r50", 300),  # as many as queries
        ("detr_r50", 100),
        ("conditional_detr_r50", 100),
        ("deformable_detr_r50", 100),
    ],
)
def test_as_many_detections_are_kept_as_published(name, limit):
    assert resolve(name).inference.limit == limit


def test_drop_path_and_decay_of_swin_are_published_or_said_to_be_ours():
    for name in (name for name in PRESETS if "swin" in name):
        config = resolve(name)
        text = files("dqdet").joinpath("presets", f"{name}.yaml").read_text()
        ours = "Ours are" in text and "drop path, timm's 0.1" in text and "decay" in text
        assert ours == (config.model.backbone.drop_path is None), name
        if name.startswith("seqformer"):
            assert config.model.backbone.drop_path == 0.3
            assert config.train.decay_norms  # the published code makes no exceptions
        elif name.startswith("dino"):
            assert (config.model.backbone.drop_path, config.train.decay_norms) == (0.2, True)
        elif "mask2former" in name:
            assert (config.model.backbone.drop_path, config.train.decay_norms) == (0.3, False)
    signature = inspect.signature(timm.models.swin_transformer.SwinTransformer.__init__)
    assert signature.parameters["drop_path_rate"].default == 0.1


def test_overrides_are_the_same_in_all_forms():
    written = resolve("detr_r50", ["train.epochs=12", "queries.kind=static", "model.backbone.name=resnet18"])
    dotted = {"train.epochs": 12, "queries.kind": "static", "model.backbone.name": "resnet18"}
    nested = {"train": {"epochs": 12}, "queries": {"kind": "static"}, "model": {"backbone": {"name": "resnet18"}}}
    assert written == resolve("detr_r50", dotted) == resolve("detr_r50", nested)
    assert written == resolve(
        "detr_r50", ["train={epochs: 12}", "queries.kind=static", "model.backbone={name: resnet18}"]
    )
    assert (written.train.epochs, written.queries.kind, written.model.backbone.name) == (12, "static", "resnet18")
    assert written.train.lr == resolve("detr_r50").train.lr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data.train=2017", "2017"),  # text, where text is meant
        ("data.root=/data/coco 2017", "/data/coco 2017"),
        ("data.root=", None),
        ("train.steps=null", None),
        ("train.steps=7", 7),
        ("train.lr=1e-4", 1e-4),
        ("data.crop=false", False),
        ("data.flip=no", False),
        ("train.drop=[30, 40.5]", [30, 40.5]),
        ("data.resize=[480]", [480]),
        ("train.precision=32", "32"),
        ("data.root=a=b", "a=b"),
    ],
)
def test_values_are_read_as_their_option_means_them(text, value):
    assert options(resolve("detr_r50", [text]))[text.split("=")[0]] == value


def test_groups_without_options_change_nothing_and_unknown_ones_are_refused():
    assert resolve("detr_r50", {"train": {}, "data": {"scenes": {}}}) == resolve("detr_r50")
    with pytest.raises(DqdetError, match="unknown option 'trian', did you mean train"):
        resolve("detr_r50", {"trian": {}})


def test_a_later_override_wins_and_the_given_configuration_stays():
    config = resolve("detr_r50", ["train.epochs=1", "train.epochs=2"])
    assert config.train.epochs == 2
    assert override(config, {"train.epochs": 3}).train.epochs == 3
    assert config.train.epochs == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "unknown option 'train.epoch', did you mean train.epochs?"),
        ("epochs=3", "did you mean train.epochs?"),
        ("hidden=3", "did you mean model.hidden or queries.hidden?"),
        ("model.points=3", "unknown option 'model.points'"),  # Deformable-DETR's
        ("qwertz=1", "unknown option 'qwertz'; `dqdet presets NAME` prints all options"),
        ("train.epochs=abc", "train.epochs=abc: should be a valid integer"),
        ("train.epochs=1.5", "train.epochs=1.5: should be a valid integer"),
        ("train.epochs=0", "train.epochs=0: should be greater than 0"),
        ("train.ema=1", "train.ema=1: should be less than 1"),
        ("train.drop=[1, x]", "train.drop.1=x: should be a valid number"),
        ("train.drop=3", "train.drop=3: should be a valid list"),
        ("train.drop=[3", "train.drop=[3: not a value"),
        ("data.crop=maybe", "data.crop=maybe: should be a valid boolean"),
        (
            "queries.kind=dynamic",
            "queries.kind=dynamic: should be 'static', 'modulated', 'generated', 'grouped', 'shared' or 'own'",
        ),
        ("model.dropout=-1", "model.dropout=-1: should be greater than or equal to 0"),
        ("train.epochs", "'train.epochs' is not of the form option=value"),
        ("train=3", "train is a group of options; set one of train.epochs"),
        ("model.backbone=resnet18", "model.backbone.name"),
        ("model.family=deformable_detr", "model.family cannot be set: choose another preset"),
        ("preset=scenes_tiny", "preset cannot be set"),
        ("model.heads=7", "model.hidden=256 is not divisible by model.heads=7"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(override, expected):
    assert expected in message("detr_r50", [override])


def test_several_wrong_values_are_reported_together():
    text = message("detr_r50", ["train.epochs=abc", "train.lr=x"])
    assert "train.epochs=abc" in text
    assert "train.lr=x" in text


@pytest.mark.parametrize("path", sorted(options(resolve("deformable_detr_r50"))))
def test_a_slip_of_the_pen_gets_its_option_suggested(path):
    text = message("deformable_detr_r50", [f"{path[:-1]}=1"])
    assert f"did you mean {path}" in text or f" or {path}" in text


def test_an_unknown_preset_is_answered_with_the_nearest():
    text = message("deformable_r50")
    assert "unknown preset 'deformable_r50', did you mean deformable_detr_r50?" in text
    assert all(name in text for name in PRESETS)
    assert "did you mean" not in message("yolo")


def test_a_softmax_needs_an_output_for_no_object():
    """Otherwise the last class would be taken for it in silence."""
    text = message("conditional_detr_r50", ["loss.classification=cross_entropy"])
    assert "conditional_detr has no output for 'no object'" in text
    assert resolve("smca_detr_r50", ["loss.classification=cross_entropy"]).model.no_object


def test_two_stage_refuses_dynamic_queries_and_says_what_to_set():
    text = message("deformable_detr_r50_refine", ["model.two_stage=true"])
    assert "set queries.kind=static" in text
    assert resolve("deformable_detr_r50_refine", ["model.two_stage=true", "queries.kind=static"]).model.two_stage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "not a configuration"),
        ("", "not a configuration"),
        ("preset: x\nmodel: {family: detr}\nmodle: {}", "unknown option 'modle'"),
        ("preset: x\nmodel: {family: detr, heads: many}", "model.heads=many: should be a valid integer"),
        ("preset: x\nmodel: {family: yolo}", "model"),
    ],
)
def test_a_damaged_configuration_file_is_named(text, expected):
    with pytest.raises(DqdetError, match=r"^run/config\.yaml: ") as caught:
        from_yaml(text, "run/config.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


SELF = ("description", "extends", "recipe")  # of a preset, beside its options
REQUIRED = {"model": ["family"], "data": ["kind", "task"], "loss": ["kind"]}  # they restrict each other


def sections(base=Section):
    return {base}.union(*(sections(section) for section in base.__subclasses__()))


@pytest.mark.parametrize("section", sorted(sections() - {Section}, key=str))
def test_every_option_is_explained_in_one_line(section):
    for option in section.model_fields:
        explanation = section.explanation(option)
        assert len(explanation.split()) > 1, option
        assert "\n" not in explanation
        assert explanation.endswith("."), option
        assert not explanation.startswith(("Its ", "Their ", "The same")), option  # it stands alone in a table


def test_a_changed_default_keeps_the_explanation():
    assert DabDeformableDetrConfig.explanation("refine") == DeformableDetrConfig.explanation("refine")
    assert DeformableDetrConfig.explanation("feedforward") == TransformerConfig.explanation("feedforward")
    assert SeqFormerConfig.explanation("levels") != DeformableDetrConfig.explanation("levels")


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("_finetune")])
def test_fine_tuning_is_the_published_preset_with_a_short_recipe(name):
    assert for_trained_weights(name)
    base = name.removesuffix("_finetune")
    assert not for_trained_weights(base)
    before, after = options(resolve(base)), options(resolve(name))
    differing = {path for path, value in after.items() if value != before[path]} - {"preset"}
    lengths = {f"train.{option}" for option in ("epochs", "steps", "drop", "drop_steps", "batch", "warmup")}
    rates = {f"train.{option}" for option in ("lr", "backbone_lr", "offsets_lr")}
    assert {"train.epochs", "train.warmup"} <= differing <= lengths | rates
    for rate in rates:
        assert after[rate] <= before[rate] * after["train.batch"] / before["train.batch"]  # as published an image
    assert after["train.epochs"] * 5 / 6 == after["train.drop"][0]
    longer = resolve(name, ["train.epochs=60"])
    assert longer.train.drop == [50.0]
    assert longer.train.drop_steps == []


def test_presets_hold_only_differences_from_what_they_extend():
    for name in PRESETS:
        own = configuration._read_preset(name)
        required = {
            section: {key: own[section][key] for key in keys if key in own[section]}
            for section, keys in REQUIRED.items()
            if section in own
        }
        inherited = resolve(own["extends"]) if "extends" in own else Config.model_validate({"preset": name} | required)
        before, after = options(inherited), options(resolve(name))
        given = configuration._flat({key: value for key, value in own.items() if key not in SELF})
        repeated = {path for path in given if before[path] == after[path]} - {
            f"{section}.{key}" for section, keys in REQUIRED.items() for key in keys
        }
        assert not repeated, f"{name} repeats {repeated}"


@pytest.mark.parametrize(
    ("preset", "context"),
    [
        ("detr_r50", "backbone"),
        ("dab_deformable_detr_r50", "projected"),
        ("seqformer_r50", "projected"),
        ("mask2former_r50_coco_instance", "memory"),
    ],
)
def test_files_from_before_the_option_mean_the_context_of_then(preset, context):
    text = "\n".join(line for line in to_yaml(resolve(preset)).splitlines() if "  context: " not in line)
    assert from_yaml(text, "config.yaml").queries.context == context
    static = text.replace("kind: modulated", "kind: static")
    assert from_yaml(static, "config.yaml").queries.context == "backbone"  # what an upgrade starts with
    assert from_yaml(to_yaml(resolve(preset)), "config.yaml").queries.context == "backbone"
