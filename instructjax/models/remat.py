"""Rematerialization: which results of a block's forward pass are saved for its backward pass.

What is not saved is computed again. Results are recognized by their names (`jax.ad_checkpoint.checkpoint_name`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

DENSE = "dense"  # the outputs of dense layers
ATTENTION = "attention"  # the outputs of attention, before its last dense layer


def policy(remat: str) -> Callable[..., Any]:
    """Returns the policy of `jax.checkpoint` for a value of `TransformerConfig.remat`."""
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return policies.everything_saveable
        case "dense":
            return policies.save_only_these_names(DENSE)
        case "attention":
            return policies.save_from_both_policies(policies.save_only_these_names(ATTENTION), _is_cudnn_attention)
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[DENSE],
                offload_src="device",
                offload_dst="pinned_host",
            )
        case _:
            return policies.nothing_saveable


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns whether this is cuDNN's forward kernel, whose output and softmax statistics have no names."""
    return primitive.name.startswith("dot_product_attention_fwd")
