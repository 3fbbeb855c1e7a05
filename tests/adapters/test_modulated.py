"""Modulated classes of ``transformers`` against the unmodified ones, on small random models."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from library_models import CONFIGS, QUERIES, build, inputs, outputs, targets
from torch import Tensor, nn

import dqdet.queries
from dqdet.adapters import transformers as adapter
from dqdet.adapters.transformers.seams import SEAMS, Seam
from dqdet.errors import DqdetError
from dqdet.queries import QuerySource
from dqdet.types import Queries

RATIO = 4
every_class = pytest.mark.parametrize("name", CONFIGS)


def seam_of(name: str) -> Seam:
    return SEAMS[name.split()[0]]


def modulated(name: str, **options: Any) -> nn.Module:
    """With basic queries that differ, so that mistakes show."""
    model = build(name)
    torch.manual_seed(3)
    of_groups = {"ratio": getattr(model.config, "group_detr", None), "groups": "mean"}
    started = of_groups if seam_of(name).groups else {"ratio": RATIO}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*perturbation has no effect")
        adapter.modulate(model, **{"hidden": 16, "perturbation": 1.0} | started | options)
    with torch.no_grad():  # coefficients that differ between images
        for parameter in model.queries.coefficients.parameters():
            parameter += torch.randn_like(parameter)
    return model


def train(model: nn.Module) -> nn.Module:
    """In training mode, but for batch norms, whose outputs are others there."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """To ``tolerance`` of what is largest (infinite are logits of words that are not there)."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = wanted[wanted.isfinite()].abs().max().clamp(min=1).item()
        torch.testing.assert_close(
            actual[name], wanted, rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def first(found: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: tensor[:, :count] for name, tensor in found.items()}


def count_of(model: nn.Module) -> int:
    """Outputs of inference: more than there are queries where every one starts from several patterns."""
    return model._groups[0].size


@every_class
@torch.no_grad()
def test_outputs_stay_the_same(name):
    model = build(name)
    given = inputs(model)
    before = outputs(model(**given))
    assert adapter.modulate(model) is model
    assert model.config.modulated["count"] == QUERIES
    assert_same(outputs(model(**given)), before)


@every_class
@torch.no_grad()
def test_repeated_queries_give_the_same_in_training(name):
    """Every group of a hull's queries is the model's own, so each one finds what the model found."""
    if seam_of(name).groups:
        pytest.skip("its basic queries are the groups that it has trained, which differ")
    model = build(name)
    given = inputs(model)
    before = outputs(train(model)(**given))
    adapter.modulate(model, ratio=2, basic="groups")
    found = outputs(train(model)(**given))
    found = {key: value for key, value in found.items() if key != "encoder_logits"}
    count = count_of(model)
    for start in range(0, 3 * count, count):
        group = {key: value[:, start : start + count] for key, value in found.items()}
        assert_same(group, {key: before[key] for key in found}, 5e-6)


@every_class
@torch.no_grad()
def test_first_group_in_training_is_that_of_inference(name):
    model = modulated(name)
    given = inputs(model)
    inference = outputs(model(**given))
    training = outputs(train(model)(**given))
    count = count_of(model)
    assert next(iter(training.values())).shape[1] == count * (1 + model.queries.config.ratio)
    assert_same(first(training, count), inference, 5e-6)


class Replaced(nn.Module):
    """A source whose training queries are others, behind the same ones of inference."""

    def __init__(self, source: nn.Module):
        super().__init__()
        self.source, self.context = source, source.context

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        made = self.source(features, padding)
        count = next(iter(made.groups.values()))
        self.others = {part: torch.randn_like(x[:, count:]).requires_grad_() for part, x in made.parts.items()}
        parts = {part: torch.cat([x[:, :count], self.others[part]], 1) for part, x in made.parts.items()}
        return Queries(parts, made.groups, made.coefficients)


@every_class
def test_groups_do_not_see_each_other(name):
    model = train(modulated(name))
    given = inputs(model)
    count = count_of(model)
    expected = first(outputs(model(**given)), count)
    model.queries = Replaced(model.queries)
    found = first(outputs(model(**given)), count)
    assert_same(found, expected, 0)
    total = sum(value[value.isfinite()].sum() for value in found.values())
    gradients = torch.autograd.grad(total, list(model.queries.others.values()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.fixture
def same_points(monkeypatch):
    """Losses of masks are of random points: here they depend on their number alone."""

    def rand(*shape, **_):
        generator = torch.Generator().manual_seed(0)
        return torch.empty(*shape).uniform_(generator=generator)

    monkeypatch.setattr(torch, "rand", rand)


def unmodified(name: str, model: nn.Module, parts: dict[str, Tensor], head: int = 0) -> nn.Module:
    """The class as it is in the library, with the weights of a modulated model and tables of given queries.

    Of a class with groups it has one, which that head makes proposals for.
    """
    seam = seam_of(name)
    count = len(next(iter(parts.values())))
    original = build(name, **({"group_detr": 1} if seam.groups else {}), num_queries=count)
    if name.startswith("MaskFormer"):  # its decoder has a configuration of its own
        table = seam.reader_of(original).queries_embedder
        seam.reader_of(original).queries_embedder = nn.Embedding(count, table.embedding_dim)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("queries.")}
    if seam.groups:
        state = {re.sub(rf"(enc_out\w+)\.{head}\.", r"\1.0.", key): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if key in original.state_dict()}
    missing, unexpected = original.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.split(".")[-2] for key in missing} == set(seam.tables)
    with torch.no_grad():
        for table, names in seam.tables.items():
            weight = torch.cat([parts[part] for part in names], 1)
            getattr(seam.reader_of(original), table).weight.copy_(weight)
    return train(original)


def made_by(model: nn.Module, given: dict[str, Any]) -> Queries:
    """The queries of one training step."""
    made = []
    handle = model.queries.register_forward_hook(lambda module, args, queries: made.append(queries))
    model(**given)
    handle.remove()
    return made[0]


def loss_of(model: nn.Module, given: dict[str, Any], wanted: dict[str, Any], encoder: bool = True) -> Tensor:
    """The class's own loss, or that without the encoder's proposals."""
    if not encoder:
        model.config.two_stage, build_as = True, model.loss_function
        model.loss_function = lambda *args, **kwargs: build_as(
            *args[:4], copied(args[4], two_stage=False), *args[5:], **kwargs
        )
    return model(**given, **wanted).loss


def copied(config: Any, **options: Any) -> Any:
    config = copy.copy(config)
    for option, value in options.items():
        setattr(config, option, value)
    return config


@every_class
def test_loss_is_that_of_the_class_for_each_group(name, same_points):
    beta = 0.7
    scored = seam_of(name).scores is not None
    options = {"basic": "groups"} if scored else {}  # a class with so many queries takes other proposals
    model = train(modulated(name, beta=beta, **options))
    given, wanted = inputs(model, images=1), targets(model, images=1)
    queries = made_by(model, given)
    sizes = list(queries.groups.values())
    split = {part: x[0].split(sizes) for part, x in queries.parts.items()}
    groups = [{part: of_groups[number] for part, of_groups in split.items()} for number in range(len(sizes))]
    if name == "RfDetrForInstanceSegmentation":  # its points depend on how many queries there are together
        parts = enumerate(groups[1:])
        others = [loss_of(unmodified(name, model, group, head), given, wanted) for head, group in parts]
    elif seam_of(name).groups:  # L(basic) is what the class has for its groups together
        basic = train(build(name))
        state = {key: value for key, value in model.state_dict().items() if key in basic.state_dict()}
        basic.load_state_dict(state, strict=False)
        with torch.no_grad():
            for table, (part,) in seam_of(name).tables.items():
                getattr(seam_of(name).reader_of(basic), table).weight.copy_(queries.parts[part][0, sizes[0] :])
        others = [loss_of(basic, given, wanted)]
    else:
        others = [loss_of(unmodified(name, model, group), given, wanted, encoder=not scored) for group in groups[1:]]
    expected = loss_of(unmodified(name, model, groups[0]), given, wanted) + beta * sum(others) / len(others)
    torch.testing.assert_close(model(**given, **wanted).loss, expected, rtol=2e-6, atol=0)


@every_class
def test_loss_of_inference_is_that_of_the_class(name, same_points):
    model = build(name)
    given, wanted = inputs(model), targets(model)
    expected = model(**given, **wanted).loss
    adapter.modulate(model)
    torch.testing.assert_close(model(**given, **wanted).loss, expected, rtol=2e-6, atol=0)


@every_class
def test_gradients_reach_tables_and_coefficients(name):
    model = train(modulated(name))
    given, wanted = inputs(model), targets(model)
    if seam_of(name).groups:  # the last layer starts with zeros, but not without a gradient: one step opens it
        model(**given, **wanted).loss.backward()
        assert model.queries.coefficients[-1].weight.grad.abs().max() > 1e-6
        torch.optim.Adam(model.queries.parameters(), lr=1e-3).step()
        model.zero_grad()
    model(**given, **wanted).loss.backward()
    parameters = dict(model.queries.named_parameters())
    assert len(parameters) == len(seam_of(name).tables) * len(next(iter(seam_of(name).tables.values()))) + 4
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every_class
@torch.no_grad()
def test_folders_keep_the_model(name, tmp_path):
    model = modulated(name, beta=0.5)
    given = inputs(model)
    expected = outputs(model(**given))
    model.save_pretrained(tmp_path)
    loaded = adapter.load(tmp_path)
    assert type(loaded) is type(model) is getattr(adapter, f"Modulated{name.split()[0]}")
    assert loaded.config.modulated == model.config.modulated
    assert not loaded.training
    assert_same(outputs(loaded(**given)), expected, 0)
    again = type(model).from_pretrained(tmp_path)
    assert_same(outputs(again(**given)), expected, 0)


@every_class
def test_copies_are_independent(name):
    """Of ``deepcopy`` (EMA) and ``pickle``: the same outputs and losses, and none of the first model's parameters."""
    model = modulated(name)
    given, wanted = inputs(model), targets(model)
    copies = [copy.deepcopy(model)]
    if not seam_of(name).groups:  # those of the library have local functions for hooks
        copies.append(pickle.loads(pickle.dumps(model)))
    expected = outputs(model(**given))
    for other in (*copies, copy.deepcopy(model)):
        assert not {id(x) for x in other.parameters()} & {id(x) for x in model.parameters()}
        assert_same(outputs(other(**given)), expected, 0)
        train(other)(**given, **wanted).loss.backward()
        assert other.queries.coefficients[0].weight.grad.any()
        with torch.no_grad():
            other.queries.coefficients[-1].bias += torch.randn_like(other.queries.coefficients[-1].bias)
        assert not torch.equal(next(iter(outputs(other.eval()(**given)).values())), next(iter(expected.values())))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_same(outputs(model(**given)), expected, 0)


@every_class
@torch.no_grad()
def test_queries_depend_on_the_image_and_not_on_its_padding(name):
    model = modulated(name)
    given, seen = inputs(model), []
    given["pixel_mask"][1, :, 64:] = 0
    model.queries.register_forward_pre_hook(lambda module, args: seen.extend(args))
    coefficients = made_by(model, given).coefficients
    assert not torch.allclose(coefficients[0], coefficients[1], atol=1e-3)

    features, padding = seen  # [B, C, h, w], [B, h, w]
    valid = nn.functional.interpolate(given["pixel_mask"][:, None].float(), features.shape[2:])[:, 0].bool()
    assert torch.equal(~valid, padding)
    assert padding[1].any() == (given["pixel_values"].shape[3] > 64)
    changed = features.masked_fill(padding[:, None], 100.0)
    assert torch.equal(model.queries(changed, padding).coefficients, coefficients)


SOURCES = [
    {"kind": "shared", "patterns": 5},
    {"kind": "generated"},
    {"kind": "grouped"},
    {"kind": "grouped", "basic": "groups"},
    {"basic": "groups"},
    {"basic": "one"},
    {"context": "none"},
    {"context": "projected"},
    {"context": "memory"},
    {"pool": "max", "pool_padding": True, "coefficients": "raw"},
]
TRAINED = {"grouped": RATIO, "shared": 0, "generated": 0}


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("options", SOURCES, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("name", ["DetrForObjectDetection", "DeformableDetrForObjectDetection"])
def test_every_source_of_queries_trains(name, options, tmp_path):
    model = build(name)
    given, wanted = inputs(model), targets(model)
    before = outputs(model(**given))
    adapter.modulate(model, ratio=RATIO, hidden=16, **options)
    if options.get("kind", "grouped") == "grouped":
        assert_same(outputs(model(**given)), before)
    trained = TRAINED.get(options.get("kind"), 1 if options.get("basic") == "one" else RATIO)
    found = train(model)(**given, **wanted)
    assert found.logits.shape[1] == QUERIES * (1 + trained)
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in model.queries.parameters())
    model.eval().save_pretrained(tmp_path)
    assert_same(outputs(adapter.load(tmp_path)(**given)), outputs(model(**given)), 0)


def test_mask2former_reads_its_pixel_decoder():
    name = "Mask2FormerForUniversalSegmentation"
    made = {}
    for context in ("backbone", "projected", "memory"):
        model = modulated(name, context=context)
        assert model.queries.coefficients[0].in_features == {"backbone": 20}.get(context, 32)
        made[context] = made_by(model, inputs(model)).coefficients
    assert not torch.allclose(made["projected"], made["memory"], atol=1e-3)


@torch.no_grad()
def test_basic_queries_keep_the_proposal_of_their_hull():
    model = train(modulated("GroundingDinoForObjectDetection"))
    seen: list[Any] = []
    decoder = model.model.decoder
    decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    proposed = model(**inputs(model)).encoder_pred_boxes  # [B, m, 4]
    places, hulls = seen[0]["reference_points"].split([QUERIES, QUERIES * RATIO], 1)
    assert torch.equal(places, proposed)
    assert torch.equal(hulls.unflatten(1, (QUERIES, RATIO)), proposed[:, :, None].expand(-1, -1, RATIO, -1))


def test_groups_start_at_the_first_or_at_the_mean():
    # Not quite the first alone: a saturated softmax would never learn (its row is moved to compensate).
    for groups, expected in ("first", [0.99, 0.005, 0.005]), ("mean", [1 / 3] * 3):
        model = adapter.modulate(build("LwDetrForObjectDetection"), groups=groups, context="none")
        weights = made_by(model, inputs(model)).coefficients  # [B, m, r]
        torch.testing.assert_close(weights, torch.tensor(expected).expand_as(weights), atol=1e-7, rtol=0)
    assert model.config.modulated["basic"] == "groups"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DetrForObjectDetection", {"colour": 1}, "colour"),
        ("DetrForObjectDetection", {"ratio": 0}, "ratio"),
        ("DetrForObjectDetection", {"denoising": 50}, "denoising: only dqdet's own training has that"),
        ("DetrForObjectDetection", {"kind": "static"}, "kind=static: that is what the model has"),
        ("DetrForObjectDetection", {"kind": "own"}, "kind=own"),
        ("DetrForObjectDetection", {"beta": -1.0}, r"beta=-1\.0: should be a number, 0 or more, or None"),
        ("DetrForObjectDetection", {"beta": float("nan")}, "beta=nan: should be"),
        ("DetrForObjectDetection", {"beta": "1"}, "beta='1': should be"),
        ("DetrForObjectDetection", {"perturbation": float("nan")}, "perturbation=nan: should be a number, 0 or more"),
        ("DetrForObjectDetection", {"groups": "foo"}, "groups='foo': should be first or mean"),
        ("DetrForObjectDetection", {"groups": "mean"}, "groups=mean: there is one group of queries"),
        ("LwDetrForObjectDetection", {"ratio": 4}, "ratio=4: its own groups of queries are the basic ones"),
        ("LwDetrForObjectDetection", {"basic": "whole"}, "basic=whole: its own groups of queries"),
        ("LwDetrForObjectDetection", {"context": "memory"}, "context=memory: it has no such map"),
        ("GroundingDinoForObjectDetection", {"context": "memory"}, "context=memory: it has no such map"),
    ],
)
def test_wrong_options_leave_the_model_as_it_was(name, options, message):
    model = build(name)
    with pytest.raises(DqdetError, match=message):
        adapter.modulate(model, **options)
    assert type(model).__name__ == name
    assert not hasattr(model.config, "modulated")
    assert isinstance(getattr(seam_of(name).reader_of(model), next(iter(seam_of(name).tables))), nn.Embedding)


def test_options_that_nothing_reads_are_named():
    with pytest.warns(UserWarning, match=r"queries\.pool=max has no effect with queries\.context=none"):
        adapter.modulate(build("DetrForObjectDetection"), pool="max", context="none")
    with pytest.warns(UserWarning, match=r"perturbation has no effect with queries\.kind=grouped"):
        adapter.modulate(build("DetrForObjectDetection"), kind="grouped", perturbation=0.1)
    with pytest.warns(UserWarning, match=r"beta has no effect with queries\.kind=shared"):
        adapter.modulate(build("DetrForObjectDetection"), kind="shared", beta=0.5)


@pytest.mark.parametrize("basic", ["whole", "groups"])
def test_without_beta_all_groups_weigh_the_same(basic):
    """As in dqdet: the mean over the groups, each by its own loss."""
    model = build("DetrForObjectDetection")
    given, wanted = inputs(model), targets(model)
    alone = train(model)(**given, **wanted).loss
    for beta, expected in ((0.0, alone), (None, alone), (1.0, 2 * alone)):
        found = adapter.modulate(build("DetrForObjectDetection"), ratio=1, basic=basic, beta=beta)
        torch.testing.assert_close(train(found)(**given, **wanted).loss, expected, rtol=1e-4, atol=1e-4)


def test_a_source_of_queries_from_another_program_trains(monkeypatch):
    class Own(QuerySource):
        def __init__(self, widths, channels, config):
            super().__init__()
            self.tables = nn.ParameterDict(
                {name: torch.randn(config.count + 3, width) for name, width in widths.items()}
            )
            self.count = config.count

        def forward(self, features, padding):
            rows = slice(None) if self.training else slice(self.count)
            parts = {name: table[rows].expand(len(features), -1, -1) for name, table in self.tables.items()}
            return Queries(parts, {"own": self.count} | ({"more": 3} if self.training else {}))

        def training_sizes(self):
            return [3]

    monkeypatch.setattr(dqdet.queries, "own", Own)
    model = adapter.modulate(build("DetrForObjectDetection"), kind="own")
    found = train(model)(**inputs(model), **targets(model))
    assert found.logits.shape[1] == QUERIES + 3
    assert any(name.endswith("_basic") for name in found.loss_dict)
    found.loss.backward()


def test_models_without_a_table_are_refused():
    with pytest.raises(DqdetError, match="it has one group of queries"):
        adapter.modulate(build("LwDetrForObjectDetection", group_detr=1))
    with pytest.raises(DqdetError, match="two_stage=True: its queries are made of the encoder's proposals"):
        adapter.modulate(build("DeformableDetrForObjectDetection with refinement", two_stage=True))
    with pytest.raises(DqdetError, match="has modulated queries already"):
        adapter.modulate(modulated("DetrForObjectDetection"))
    with pytest.raises(DqdetError, match="Linear: dqdet does not know where its queries are; supported are Detr"):
        adapter.modulate(nn.Linear(1, 1))


def test_what_queries_are_made_of_is_needed():
    model = modulated("DetrForObjectDetection")
    tokens = torch.randn(1, 16, 32)
    with pytest.raises(DqdetError, match="queries are made of images; give pixel_values"):
        model(pixel_values=None, inputs_embeds=tokens)
    with pytest.raises(DqdetError, match="queries cannot be masked"):
        model(**inputs(model), decoder_attention_mask=torch.ones(2, QUERIES))
