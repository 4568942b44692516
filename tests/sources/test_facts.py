import random

import pytest

from instructjax.errors import DataError
from instructjax.sources import e2e_records
from instructjax.sources.facts import facts_stated, share_of_facts, slots_stated
from tests import local_data

NAMES = ["The Wrestlers", "Blue Spice", "Café Adriatic"]
VALUES = {
    "eatType": ["pub", "restaurant", "coffee shop"],
    "food": ["Chinese", "English", "Japanese", "Indian", "Fast food", "Italian", "French"],
    "priceRange": ["cheap", "less than £20", "moderate", "£20-25", "high", "more than £30"],
    "customer rating": ["low", "1 out of 5", "average", "3 out of 5", "high", "5 out of 5"],
    "area": ["riverside", "city centre"],
    "familyFriendly": ["yes", "no"],
}
TEMPLATES = {
    "name": ["There is a place called {}.", "{} is worth a visit."],
    "near": ["It is near {}.", "You find it next to {}."],
    "eatType": ["It is a {}.", "This {} is open."],
    "food": ["It serves {}.", "They offer {} food."],
    "priceRange": ["The price range is {}.", "Its prices are {}."],
    "customer rating": ["The customer rating is {}.", "It has a rating of {}.", "Its customer ratings are {}."],
    "area": ["It lies in the {}.", "In the {} area."],
}
FAMILY = {
    "yes": ["It is family friendly.", "Children are welcome."],
    "no": ["It is not family-friendly.", "It isn't child friendly.", "Kids are not welcome."],
}


def world(rng):
    name, near = rng.sample(NAMES, 2)
    facts = {"name": name, "near": near} | {slot: rng.choice(values) for slot, values in VALUES.items()}
    return {slot: facts[slot] for slot in rng.sample(sorted(facts), rng.randint(2, 8))}


def sentence(slot, value, rng):
    return rng.choice(FAMILY[value]) if slot == "familyFriendly" else rng.choice(TEMPLATES[slot]).format(value)


def written(facts):
    return ", ".join(f"{slot}[{value}]" for slot, value in facts.items())


@pytest.mark.parametrize("seed", range(200))
def test_a_text_states_exactly_the_facts_it_was_made_from(seed):
    rng = random.Random(seed)
    facts = world(rng)
    said = {slot for slot in facts if rng.random() < 0.6}
    text = " ".join(sentence(slot, facts[slot], rng) for slot in rng.sample(sorted(said), len(said)))
    assert {slot for slot, stated in slots_stated(written(facts), text).items() if stated} == said, text
    assert facts_stated(written(facts), text) == (len(said), len(facts))


@pytest.mark.parametrize("slot", ["food", "area", "familyFriendly", "priceRange", "customer rating"])
def test_another_value_is_not_stated(slot):
    rng, same = random.Random(0), {("cheap", "less than £20"), ("moderate", "£20-25"), ("high", "more than £30")}
    same |= {("low", "1 out of 5"), ("average", "3 out of 5"), ("high", "5 out of 5")}
    for value in VALUES[slot]:
        for other in VALUES[slot]:
            level = value == other or (value, other) in same or (other, value) in same
            text = sentence(slot, other, rng)
            assert facts_stated(f"{slot}[{value}]", text) == (int(level), 1), (value, text)


@pytest.mark.parametrize(
    ("mr", "text"),
    [
        ("priceRange[less than £20]", "Meals cost under 20 pounds."),
        ("priceRange[cheap]", "An inexpensive low-priced pub."),
        ("priceRange[high]", "A high-priced place."),
        ("priceRange[more than £30]", "Expect to pay over £30."),
        ("priceRange[£20-25]", "Prices range from £20 to £25."),
        ("customer rating[5 out of 5]", "Customers gave it five stars."),
        ("customer rating[high]", "A highly rated pub."),
        ("customer rating[1 out of 5]", "It has a one-star rating."),
        ("customer rating[3 out of 5]", "It is rated 3/5."),
        ("area[city centre]", "It is in the center of the city."),
        ("area[riverside]", "It stands by the river."),
        ("familyFriendly[yes]", "Great for kids!"),
        ("familyFriendly[no]", "An adults only pub."),
        ("familyFriendly[no]", "A non-family-friendly pub."),
        ("name[The Wrestlers]", "Try Wrestlers tonight."),
        ("near[Café Adriatic]", "It is close to the cafe adriatic."),
        ("food[Fast food]", "A fast-food place."),
        ("food[Peruvian]", "It serves Peruvian dishes."),
    ],
)
def test_other_words_state_the_same_fact(mr, text):
    assert facts_stated(mr, text) == (1, 1)


@pytest.mark.parametrize(
    ("mr", "text"),
    [
        ("priceRange[high]", "It has a high customer rating and low prices."),
        ("customer rating[high]", "It has high prices and a low customer rating."),
        ("customer rating[low]", "The price range is low and the customer rating is high."),
        ("customer rating[5 out of 5]", "Its rating is 1 out of 5 stars."),
        ("food[Indian]", "It is near Raja Indian Cuisine."),
        ("familyFriendly[yes]", "It does not welcome families."),
        ("familyFriendly[no]", "It is a pub by the river."),
        ("name[The Mill]", "The Miller is a pub."),
        ("area[riverside]", ""),
    ],
)
def test_phrases_that_only_resemble_a_fact_do_not_state_it(mr, text):
    facts = mr if "Indian" not in mr else mr + ", near[Raja Indian Cuisine]"
    assert slots_stated(facts, text)[mr.split("[")[0]] is False


def test_share_of_facts_is_the_mean_over_texts():
    mrs = ["name[Aromi], area[riverside]", "name[Cotto]"]
    estimate = share_of_facts(mrs, ["Aromi is a pub.", "Cotto is a pub."])
    assert (estimate.mean, estimate.n) == (0.75, 2)
    with pytest.raises(DataError, match="expected one text for each of 2 prompts, found 1"):
        share_of_facts(mrs, ["Aromi is a pub."])


@pytest.mark.skipif(not local_data.E2E.is_dir(), reason=local_data.ABSENT)
def test_people_state_the_facts_they_were_given():
    references = e2e_records.load(local_data.E2E).demonstrations
    mrs, texts = [r.prompt for r in references], [r.response for r in references]
    shuffled = random.Random(0).sample(texts, len(texts))
    assert share_of_facts(mrs, texts).low > 0.9
    assert share_of_facts(mrs, shuffled).high < 0.35
