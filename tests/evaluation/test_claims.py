"""The rule that decides claims, and the claims of the paper: what each expects, and where its numbers are."""

import math

import claims_arms
import pytest

from instructjax.errors import DataError
from instructjax.evaluation.claims import FAILS, HOLDS, UNTOLD, Claim, Part, decide, lookup, measure, missing
from instructjax.evaluation.paper_claims import CLAIMS
from instructjax.reporting import claims_page
from instructjax.runs import folder

CURVE = [{"step": 0, "loss": 3.0}, {"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 20, "loss": math.nan}]
SIMILAR = Part("similar", "new", "old", above=-0.05, below=0.05)


def seeds(part, differences):
    """Returns made-up results of a few seeds: nested dictionaries with numbers at the places of the part."""
    found = [{"seed": seed, "recipe": "sandbox"} for seed, _ in enumerate(differences)]
    for results, difference in zip(found, differences, strict=True):
        for path in part.paths:
            put(results, path, 1.0)
        for path in [part.plus] if isinstance(part.plus, str) else part.plus:
            put(results, path, 1.0 + difference if part.minus else difference)
    return found


def put(results, path, value):
    *keys, last = path.split(".")
    for key in keys:
        results = results.setdefault(key, {})
    results[last] = value


def test_a_difference_inside_the_range_holds():
    assert measure(SIMILAR, seeds(SIMILAR, (0.01, 0.0, -0.01))).verdict == HOLDS


def test_a_difference_outside_the_range_does_not_hold():
    for sign in (-1, 1):
        assert measure(SIMILAR, seeds(SIMILAR, (sign * 0.11, sign * 0.1, sign * 0.09))).verdict == FAILS


def test_a_wide_interval_tells_nothing():
    found = measure(SIMILAR, seeds(SIMILAR, (0.04, 0.0, -0.04)))
    assert found.verdict == UNTOLD
    # Student's t with 2 degrees of freedom: 4.3027 sd / sqrt(3).
    assert found.estimate.high == pytest.approx(4.3027 * 0.04 / 3**0.5, rel=1e-4)


def test_two_seeds_tell_nothing():
    found = measure(SIMILAR, seeds(SIMILAR, (0.001, 0.0)))
    assert (found.verdict, len(found.values)) == (UNTOLD, 2)
    assert measure(SIMILAR, []).estimate is None


def test_several_numbers_are_averaged():
    part = Part("mean", ("a", "b"), ("c", "d"))
    assert measure(part, [{"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.5}]).values == (0.5,)
    assert measure(part, [{"a": 1.0, "b": 2.0, "c": 0.5}]).values == ()


def test_seeds_without_a_number_do_not_count():
    complete = seeds(SIMILAR, (0.01, 0.0, -0.01))
    found = measure(SIMILAR, [*complete, {"new": 1.0}, {"new": math.nan, "old": 1.0}])
    assert (len(found.values), found.verdict) == (3, HOLDS)


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNTOLD], UNTOLD),
        ([HOLDS, FAILS, UNTOLD], FAILS),
        ([], UNTOLD),
    ],
)
def test_a_claim_holds_if_all_parts_do(verdicts, expected):
    assert decide(verdicts) == expected


def test_places_in_a_curve():
    places = {place: lookup({"ppo": CURVE}, f"ppo.{place}.loss") for place in ("start", "first", "middle", "end")}
    assert places == {"start": 3.0, "first": 2.0, "middle": 1.0, "end": None}  # the last one is not finite
    assert lookup({"ppo": CURVE[:1]}, "ppo.first.loss") is None
    assert lookup({"ppo": []}, "ppo.end.loss") is None
    assert lookup({"ppo": CURVE[:2]}, "ppo.middle.loss") is None
    assert lookup({}, "base.ppo.end.loss") is None
    assert lookup({"base": {"x": {"mean": 2}}}, "base.x") is None
    assert lookup({"base": {"x": 2}}, "base.x.mean") is None


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_each_verdict_of_each_part_can_be_reached(claim):
    for part in claim.parts:
        inside = next(x for x in (0.6, 0.0, -1.0) if part.above < x < part.below)
        outside = next(x for x in (-2.0, 2.0) if not part.above < x < part.below)
        assert measure(part, seeds(part, [inside + d for d in (-1e-4, 0, 1e-4)])).verdict == HOLDS, part
        assert measure(part, seeds(part, [outside + d for d in (-1e-4, 0, 1e-4)])).verdict == FAILS, part
        assert measure(part, seeds(part, [inside, outside, 0.0])).verdict == UNTOLD, part


def test_numbers_of_claims_are_those_of_arms():
    trained = {arm.name: {stage.declaration.name for stage in arm.stages} for arm in claims_arms.ARMS}
    assert len(trained) == len(claims_arms.ARMS)
    trained["base"] = {*folder.PAPER, "results", "prefixed"}
    for name in claims_arms.JUDGED:
        trained[name].add("judged")
    for name in claims_arms.FOLDS:
        trained[name].add("accuracy")
    used = set()
    for claim in CLAIMS:
        for part in claim.parts:
            for path in part.paths:
                arm, stage, *_ = path.split(".")
                assert stage in trained[arm], path
                used.add(arm)
        assert set(claim.shown) <= trained.keys()
        used |= set(claim.shown)
    assert used == trained.keys()  # nothing is trained in vain
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)


def test_missing_numbers_are_named():
    claim = Claim("z", "4.1", "New is like old.", "no figures", (SIMILAR,))
    assert missing([claim], {"old": 1.0, "new": math.nan}) == ["new"]
    assert missing([claim], {}) == ["new", "old"] and missing([claim], {"old": 1.0, "new": 2.0}) == []


def test_the_page_has_each_part_with_its_interval():
    claim = Claim("z", "4.1", "New is like old.", "no figures", (SIMILAR,), "A note.")
    text = claims_page.page([claim], seeds(SIMILAR, (0.01, 0.0, -0.01)))
    assert "| z | New is like old. | 4.1 | holds |" in text
    assert "| similar | -0.05 to 0.05 | +0.000 (-0.025 to +0.025) | 3 | holds |" in text
    assert text.endswith("A note.")
    assert "| similar | -0.05 to 0.05 | +0.010 | 1 | cannot be told |" in claims_page.page(
        [claim], seeds(SIMILAR, (0.01,))
    )
    assert text.startswith("Measured with `sandbox`, seeds 0, 1, 2.\n\n| |")
    empty = claims_page.page([claim], [])
    assert empty.startswith("Nothing has been measured yet")
    assert "| similar | -0.05 to 0.05 | not measured | 0 | cannot be told |" in empty


@pytest.mark.parametrize("key, value", [("seed", 0), ("recipe", "smoke")])
def test_results_of_one_seed_or_several_recipes_are_refused(key, value):
    first, second = seeds(SIMILAR, (0.0, 0.0))
    with pytest.raises(DataError, match="results: expected different seeds of one recipe"):
        claims_page.page([], [first, second | {key: value}])


def test_a_claim_that_cannot_be_asked_has_no_table():
    claim = Claim("z", "4.1", "New is like old.", "no figures", (), "There is no old one.")
    assert claims_page.section(claim, []) == (
        "## (z) cannot be told\n\nNew is like old. (4.1) In the paper: no figures.\n\nThere is no old one."
    )
