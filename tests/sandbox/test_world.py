"""Tests that the world's facts are complete and its sentences are parsed correctly."""

import itertools

import pytest

from instructjax.sandbox import world
from instructjax.sandbox.world import Claim, is_true, parse_claims


def test_every_animal_has_a_value_for_every_attribute():
    for animal, facts in world.FACTS.items():
        for kind in world.ATTRIBUTES:
            assert facts[kind] in world.VALUES[kind], (animal, kind)
        assert facts["friend"] != animal


def test_every_wording_of_a_fact_is_parsed_as_that_fact():
    for animal, kind in itertools.product(world.ANIMALS, world.ATTRIBUTES):
        for says, value in itertools.product(world.WORDINGS[kind], world.VALUES[kind]):
            (claim,) = parse_claims(f"the {animal} {says.format(value)}")
            assert claim == Claim(animal, kind, value)
            assert is_true(animal, claim) == (world.FACTS[animal][kind] == value)


def test_a_sentence_with_a_mood_and_two_predicates_makes_three_claims():
    assert parse_claims("one day the happy fox met the owl and ate plums") == (
        Claim("fox", "felt", "happy"),
        Claim("fox", "met", "owl"),
        Claim("fox", "ate", "plums"),
    )
    assert parse_claims("it can run") == (Claim(None, "skill", "run"),)


@pytest.mark.parametrize(
    "sentence",
    ["", "the fox", "fox is red", "the fox is red and", "the fox is red and can run and is small", "the fox eats owl"],
)
def test_a_sentence_outside_the_grammar_makes_no_claim(sentence):
    assert parse_claims(sentence) == ()


def test_every_remark_is_recognized_and_makes_no_claim():
    for remark in world.RUDE_REMARKS + world.OPINIONS:
        sentence = remark.format(animal="owl")
        assert world.is_remark(sentence)
        assert parse_claims(sentence) == ()
    assert not world.is_remark("the owl is brown")
