"""Runs lm-evaluation-harness with the model `instructjax`: any policy of a run.

    python experiments/lm_harness.py --model instructjax --tasks TASKS --model_args workdir=runs/sandbox,stage=ppo_ptx

Flags are those of `lm_eval`; see docs/tasks.md. The arguments of the model are workdir, stage ("ppo_ptx") and step (a
checkpoint; by default the one that other scripts load).
"""

import sys
from collections.abc import Sequence

from instructjax import files
from instructjax.errors import InputError
from instructjax.evaluation import harness
from instructjax.runs import folder
from instructjax.stages import trained

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
except ImportError:
    print("error: expected the package lm_eval, found none; pip install 'instructjax[lm-eval]'", file=sys.stderr)
    sys.exit(2)


@register_model("instructjax")
class Policy(TemplateLM):
    """A policy of a run as the harness's model."""

    def __init__(
        self,
        workdir: str,
        stage: str = "ppo_ptx",
        step: int | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Loads the policy. The last two arguments are the harness's, and not used."""
        super().__init__()
        directory = files.parse_workdir(str(workdir), "workdir")
        checkpoints = folder.saved_checkpoints(directory, stage)
        step = folder.selected_step(directory, stage) if step is None else step
        self.policy, _ = trained.open_policy(checkpoints, step=step)
        self.batch_size = int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """Returns EOS."""
        return self.policy.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Returns the model's context."""
        return self.policy.model.config.max_length

    @property
    def prefix_token_id(self) -> int:
        """Returns the context of a text without one: BOS, or else EOS."""
        return (*self.policy.tokenizer.bos, self.eot_token_id)[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Encodes a text, after BOS if the tokenizer has one, unless `add_special_tokens` is False."""
        bos = () if add_special_tokens is False else self.policy.tokenizer.bos
        return [*bos, *self.policy.tokenizer.encode(string)]

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **kwargs) -> list[tuple[float, bool]]:
        return harness.log_likelihoods(
            self.policy.model,
            self.policy.params,
            [(context, continuation) for _, context, continuation in requests],
            pad_id=self.policy.tokenizer.pad_id,
            batch_size=self.batch_size,
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Computes the log-likelihood of whole texts, in windows of the model's context."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        split = [list(harness.windows(tokens, self.prefix_token_id, self.max_length)) for tokens in texts]
        scored = iter(self._loglikelihood_tokens([(None, *pair) for pairs in split for pair in pairs]))
        return [sum(next(scored)[0] for _ in pairs) for pairs in split]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Samples continuations. Requests with the same arguments are sampled together."""
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        for numbers in groups.values():
            given = normalize_gen_kwargs(requests[numbers[0]].args[1])
            sampled = harness.generate(
                self.policy.model,
                self.policy.params,
                self.policy.tokenizer,
                [requests[i].args[0] for i in numbers],
                max_tokens=given["max_gen_toks"],
                stop=handle_stop_sequences(given.get("until"), eos=None),
                temperature=given.get("temperature", 1.0) if given.get("do_sample") else 0.0,
                batch_size=self.batch_size,
            )
            texts.update(zip(numbers, sampled, strict=True))
        return [texts[i] for i in range(len(requests))]


if __name__ == "__main__":
    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
