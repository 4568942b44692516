"""Trains PPO with TRL 1.12 by the recipe of a run; see twins.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import ml_collections
import numpy as np
import torch
import transformers
from datasets import Dataset
from etils import epath
from trl.experimental.ppo import PPOConfig, PPOTrainer

# observe(iteration, the policy's tensors by their names in safetensors)
Observe = Callable[[int, dict[str, np.ndarray]], None]


class _Observer(transformers.TrainerCallback):
    def __init__(self, policy: torch.nn.Module, observe: Observe):
        self.policy, self.observe = policy, observe

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Shows the policy. TRL calls this after each iteration."""
        self.observe(state.global_step, {name: x.detach().numpy() for name, x in self.policy.state_dict().items()})


def train(
    config: ml_collections.ConfigDict,
    policy: epath.Path,
    reward_model: epath.Path,
    prompts: Sequence[Sequence[int]],
    seed: int,
    iterations: int,
    observe: Observe,
) -> None:
    """Trains a policy.

    Args:
      config: the recipe; its sections ppo, data and optimizer.
      policy: the folder of the initial policy.
      reward_model: the folder of the reward model.
      prompts: the tokens of each prompt, with the separator.
      seed: of the order of the prompts and of the samples.
      iterations: of PPO.
      observe: is called after each.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    section, optimizer = config.ppo, config.optimizer
    learner, reference = (transformers.AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
    scorer, critic = (
        transformers.AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=1) for _ in range(2)
    )
    np.random.seed(seed)  # TRL's order of minibatches
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            gradient_checkpointing=False,
            num_sample_generations=0,
            total_episodes=iterations * section.batch_size,
            per_device_train_batch_size=section.batch_size,
            num_mini_batches=section.batch_size // section.minibatch_size,
            local_rollout_forward_batch_size=section.batch_size,
            num_ppo_epochs=section.epochs,
            response_length=config.data.max_response,
            stop_token="eos",
            temperature=section.temperature,
            learning_rate=section.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.epsilon,
            weight_decay=section.weight_decay,
            kl_coef=section.kl_coefficient,
            cliprange=section.clip_ratio,
            cliprange_value=section.clip_value,
            gamma=section.discount,
            lam=section.gae_lambda,
            missing_eos_penalty=section.missing_eos_penalty,
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=transformers.AutoTokenizer.from_pretrained(policy, padding_side="left"),
            model=learner,
            ref_model=reference,
            reward_model=scorer,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": [list(row) for row in prompts]}),
            callbacks=[_Observer(learner, observe)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
