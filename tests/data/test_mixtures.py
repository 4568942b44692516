"""Tests that sources are drawn in the shares that a mixture asks for, each in its own epochs, and resume exactly."""

import itertools
import json

import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data import demonstrations, layouts, mixtures, pipeline
from instructjax.data.mixtures import Mixture
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Text
from instructjax.stages.run import Run
from tests import recipes
from tests.data.test_layouts import LAYOUT, Words


def section(weights="", epochs="", temperature=1.0):
    return ml_collections.ConfigDict({"weights": weights, "epochs": epochs, "temperature": temperature})


def records(**counts):
    """Returns prompts of these sources, interleaved."""
    rows = [[Prompt(prompt=f"{name} {i}", source=name) for i in range(count)] for name, count in counts.items()]
    return [record for group in itertools.zip_longest(*rows) for record in group if record]


def drawn(mixture, count, steps, seed=3):
    order = mixtures.order(count, seed, mixture)
    return [order[i] for i in range(steps)]


@pytest.mark.parametrize(
    ("given_section", "expected"),
    [
        (section(epochs="a=0.5"), {"a": 60, "b": 40}),
        (section(temperature=2.0), {"a": 300**0.5, "b": 100**0.5}),
        (section(epochs="a=0.5", temperature=2.0), {"a": 150**0.5, "b": 100**0.5}),
        (section(temperature=1e6), {"a": 1, "b": 1}),
        (section(weights="a=1, b=3"), {"a": 1, "b": 3}),
    ],
)
def test_shares_are_those_of_weights_or_of_sizes_epochs_and_temperature(given_section, expected):
    mixture = mixtures.mix(records(a=300, b=100), given_section)
    total = sum(expected.values())
    wanted = {name: value / total for name, value in expected.items()}
    assert mixture.shares == pytest.approx(wanted, rel=1e-5)
    found = drawn(mixture, 400, 500)
    for name, share in wanted.items():
        assert np.isin(found, mixture.members[name]).mean() == pytest.approx(share, abs=0.02)


@settings(max_examples=6)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.2, 5))
def test_each_source_has_whole_epochs_of_its_own(a, b, weight):
    mixture = mixtures.mix(records(a=a, b=b), section(weights=f"a={weight}, b=1"))
    found = drawn(mixture, a + b, 4 * (a + b))
    for members in map(set, mixture.members.values()):
        own = [index for index in found if index in members]
        for start in range(0, len(own) - len(members) + 1, len(members)):
            assert sorted(own[start : start + len(members)]) == sorted(members)


def test_each_source_has_an_order_of_its_own_that_other_sources_do_not_change():
    def orders(seed=3, **counts):
        """Returns the order in which the records of each source are drawn in two epochs, counted within it."""
        mixture = mixtures.mix(records(**counts), section(temperature=1e6))
        found = drawn(mixture, sum(counts.values()), 6 * max(counts.values()), seed)
        places = {name: {index: i for i, index in enumerate(own)} for name, own in mixture.members.items()}
        return {name: [own[i] for i in found if i in own][: 2 * len(own)] for name, own in places.items()}

    two, three = orders(a=20, b=20), orders(a=20, b=20, c=20)
    assert two["a"] != two["b"]
    assert {name: three[name] for name in two} == two
    assert orders(seed=4, a=20, b=20)["a"] != two["a"]


def test_without_a_mixture_or_with_one_source_the_order_is_that_of_all_records():
    assert mixtures.mix(records(a=3, b=4), section()) is None
    assert mixtures.mix(records(a=3), section(weights="a=2")) is None
    assert sorted(drawn(None, 5, 5)) == list(range(5))
    with pytest.raises(DataError, match="expected at least one record, found none"):
        mixtures.order(0, 0)


def test_shares_of_text_are_those_of_characters():
    texts = [Text(text="a" * 30, source="long")] * 4 + [Text(text="b" * 10, source="short")] * 6
    mixture = mixtures.mix(texts, section(weights="long=1, short=1"))
    assert mixture.shares == pytest.approx({"long": 0.25, "short": 0.75})


def test_the_source_is_the_records_own_or_its_file():
    assert mixtures.source_of(Prompt(prompt="p", source="s", where="x/a.jsonl:3")) == "s"
    assert mixtures.source_of(Prompt(prompt="p", where="gs://b/x/a.v2.jsonl.gz:3")) == "a.v2"


DEMONSTRATIONS = [
    Demonstration(prompt="a red fox", response=word, source=source)
    for source, words in (("one", "bcd"), ("two", "efgefgefg"))
    for word in words
]
TEXTS = [Text(text=f"name a {word}", source=source) for source, word in (("x", "fox"), ("y", "color"), ("y", "fox"))]
DOCUMENTS = [layouts.document_tokens(text, Words()) for text in TEXTS]
WEIGHTS, TEXT_WEIGHTS = section(weights="one=2, two=1"), section(weights="x=2, y=1")
STREAMS = {
    "prompts": lambda mixture, _, **common: pipeline.shuffled_batches(
        pipeline.prompt_rows(DEMONSTRATIONS, LAYOUT), mixture=mixture, **common
    ),
    "text": lambda _, mixture, **common: pipeline.text_batches(DOCUMENTS, Words(), length=5, mixture=mixture, **common),
    "demonstrations": lambda mixture, _, **common: demonstrations.batches(
        DEMONSTRATIONS, LAYOUT, steps=9, mixture=mixture, **common
    ),
    "both": lambda mixture, text_mixture, **common: demonstrations.mixed_batches(
        DEMONSTRATIONS, DOCUMENTS, LAYOUT, steps=9, text_share=0.5, mixture=mixture, text_mixture=text_mixture, **common
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_resumes_exactly(kind):
    def make():
        mixed = mixtures.mix(DEMONSTRATIONS, WEIGHTS), mixtures.mix(TEXTS, TEXT_WEIGHTS)
        return iter(STREAMS[kind](*mixed, batch_size=4, seed=1))

    stream = make()
    for _ in range(4):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))  # as checkpoints keep it
    expected = [next(stream) for _ in range(5)]
    resumed = make()
    resumed.set_state(state)
    for batch in expected:
        for wanted, found in zip(jax.tree.leaves(batch), jax.tree.leaves(next(resumed)), strict=True):
            np.testing.assert_array_equal(wanted, found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "a=x"}, "mixture.weights: expected SOURCE=NUMBER above 0, such as hh=2, found 'a=x'"),
        ({"epochs": "a=0"}, "mixture.epochs: expected SOURCE=NUMBER above 0, such as hh=2, found 'a=0'"),
        ({"weights": "a=1", "epochs": "a=1"}, "mixture.epochs: expected sources without a weight, found 'a'"),
        ({"epochs": "hh=2"}, "mixture.epochs: expected some of demonstrations, prompts, rankings, text, found 'hh'"),
    ],
)
def test_a_wrong_mixture_is_named_before_any_training(tmp_path, changes, message):
    config = recipes.changed(recipes.recipe(tmp_path), **{f"mixture__{key}": value for key, value in changes.items()})
    with pytest.raises(ConfigError) as error:
        _ = Run(config, tmp_path / "run").layout
    assert str(error.value) == message


def test_all_sources_of_a_kind_have_weights_or_none():
    with pytest.raises(ConfigError, match="^mixture.weights: expected a weight for b, too, found none$"):
        mixtures.mix(records(a=2, b=2), section(weights="a=2"))
    assert mixtures.shares({"c": 3, "d": 1}, section(weights="a=2")) == {"c": 0.75, "d": 0.25}
    assert isinstance(mixtures.mix(records(c=3, d=1), section(weights="a=2")), Mixture)
