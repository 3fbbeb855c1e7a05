"""Whatever becomes of a valid configuration, it is one, or one line says why it is none."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD, bounded, damaged, examples, mutated, values

from dqdet.config import from_yaml, override, resolve, to_yaml
from dqdet.data.transforms import make_transform
from dqdet.training.module import DetectionModule
from tiny import tiny

CONFIGS = [tiny(), *map(resolve, ("detr_r50", "mask2former_r50_coco_panoptic", "seqformer_r50"))]
SECTIONS = {name: options for name, options in CONFIGS[0].model_dump().items() if isinstance(options, dict)}
PATHS = [f"{section}.{option}" for section, options in SECTIONS.items() for option in options]
ODD_YAML = [
    *("[" * 2000, "{" * 2000, "a: &a [*a]", "&a [*a]", "&a {b: *a}", "classes: &a [*a]", "data: &a {data: *a}"),
    *("2001-99-99", "train: {epochs: 2001-99-99}"),
    *(f"train: {{epochs: {number}}}" for number in ("9" * 5000, f"0x{'f' * 5000}")),
]
ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(12))


def use(config) -> None:
    make_transform(config.data, train=True)
    DetectionModule(None, config)


@st.composite
def files(draw: st.DrawFn) -> str:
    """YAML of a mutated configuration, or damaged YAML."""
    config = draw(st.sampled_from(CONFIGS))
    if draw(st.integers(0, 4)):
        return yaml.safe_dump(draw(mutated(config.model_dump())))
    odd = st.sampled_from([*ODD_YAML, ALIASES + "classes: *a11", ALIASES + "data: {resize: *a11}"])
    return draw(odd | damaged(to_yaml(config).encode()).map(lambda content: content.decode("utf-8", "replace")))


def test_files():
    for config in CONFIGS:
        use(config)  # which are right

    @given(text=files())
    @examples(25)
    def fuzz(text):
        with bounded():
            config = from_yaml(text, "config.yaml")
            use(config)
            assert from_yaml(to_yaml(config), "config.yaml") == config

    fuzz()


def test_options():
    texts = (
        st.sampled_from(ODD).map(str)
        | values.map(str)
        | st.sampled_from(["[" * 5000, "&a {b: *a}", "2001-99-99", "&a [*a]"])
    )
    pairs = st.tuples(st.sampled_from(PATHS) | st.text(max_size=10), texts)

    @given(options=st.lists(pairs.map("=".join), min_size=1, max_size=2))
    @examples(50)
    def fuzz(options):
        with bounded():
            use(override(CONFIGS[0], options))

    fuzz()


def test_options_in_python():
    @given(options=st.dictionaries(st.sampled_from(PATHS), values, min_size=1, max_size=2))
    @examples(50)
    def fuzz(options):
        with bounded():
            use(override(CONFIGS[0], options))

    fuzz()
