"""The rates in a line of metrics are those of its own steps, without compilation and evaluation."""

import numpy as np

from instructjax import batch
from instructjax.runs.speed import Speed


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def rows(tokens):
    """Returns a batch with this many tokens, and as much padding."""
    segments = np.repeat([1, 0], tokens)[None]
    return batch.PromptBatch(np.zeros_like(segments), segments)


def test_tokens_are_counted_without_padding_in_every_part_of_a_batch():
    assert batch.count_tokens(rows(7)) == 7
    assert batch.count_tokens((rows(3), rows(4), None, np.ones(5))) == 7


def test_a_line_counts_its_own_steps():
    clock = Clock()
    speed = Speed(clock)

    def step(tokens):
        with speed.waiting():
            clock.seconds += 0.5
        speed.count(rows(tokens))

    step(10)
    clock.seconds += 60  # compilation
    speed.values(speed.cut())

    step(30)
    clock.seconds += 1.5
    counted = speed.cut()
    step(100)  # the next step begins before the line is read
    clock.seconds += 0.5
    speed.arrived()
    clock.seconds += 40  # evaluation
    found = speed.values(counted)
    assert (found["tokens_per_second"], found["data_wait_seconds"]) == (10.0, 0.5)

    clock.seconds += 4
    speed.arrived()
    found = speed.values(speed.cut())
    assert (found["tokens_per_second"], found["data_wait_seconds"]) == (25.0, 0.5)
