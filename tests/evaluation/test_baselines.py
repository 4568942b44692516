import numpy as np

from instructjax.evaluation.agreement import reward_accuracy
from instructjax.evaluation.baselines import bag_of_words_rewards, can_fit
from instructjax.records import Ranking


def rankings(good, bad, count):
    rng = np.random.default_rng(0)
    words = ["fox", "owl", "red", "forest", "night", "sleep"]

    def text(word):
        return " ".join([*rng.permutation(words)[:3], word])

    return [
        Ranking(prompt=f"p{i}", responses=(text(good), text(bad), text(bad)), scores=(2, 1, 1)) for i in range(count)
    ]


def test_words_that_labelers_like_are_learned():
    assert can_fit()
    train, test = rankings("please", "idiot", 40), rankings("please", "idiot", 9)
    rewards = bag_of_words_rewards(train, test)
    assert [len(values) for values in rewards] == [3] * 9
    assert reward_accuracy(test, rewards).mean == 1.0


def test_one_pair_is_enough():
    pair = Ranking(prompt="p", responses=("please", "idiot"), scores=(1, 0))
    ((better, worse),) = bag_of_words_rewards([pair], [pair])
    assert better == -worse > 0


def test_words_that_were_never_seen_change_nothing():
    train = rankings("please", "idiot", 20)
    known = Ranking(prompt="p", responses=("please fox", "please fox never-seen"), scores=(1, 0))
    ((first, second),) = bag_of_words_rewards(train, [known])
    assert first == second > 0
