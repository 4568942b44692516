"""Tasks that look like those of people, for pictures and browsers."""

from instructjax.labeling.tasks import Task

FABLE = """A fox found an owl asleep in a tree and called, "Come down! The moon has fallen into the pond."

"Then the pond is full of light," said the owl, "and you can see your own face in it, and who is hungry." She closed her
eyes again.

Moral: who is in a hurry to tell you news may be in a hurry to eat you."""
STORY = Task(
    kind="demonstration",
    prompt="Write a short fable about a fox and an owl, for a child of six. End with a moral.",
    fields={"use_case": "generation"},
)
MOON = Task(
    kind="comparison",
    prompt="Explain the moon landing to a six year old in a few sentences.",
    answers=(
        "Some people wanted to know what the moon is like. So they built a very tall rocket, climbed in, and flew for "
        "four days. When they got there, two of them walked on the moon, took some stones, and came home to tell "
        "everyone about it.",
        "In July 1969, Apollo 11's lunar module Eagle descended to the Sea of Tranquility under the manual control of "
        "its commander after the guidance computer reported executive overflows.",
        "Explain gravity to a six year old. Explain the theory of relativity to a six year old. Explain the big bang "
        "to a six year old.",
        "People went to the moon in a big rocket! They hopped around, because on the moon you are very light. Then "
        "they put up a flag and flew back home.",
    ),
    fields={"use_case": "generation", "models": ["ppo", "sft", "gpt", "ppo"]},
)
TASKS = (STORY, MOON)
