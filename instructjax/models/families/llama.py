"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024) and SmolLM2; the table that many families share."""

from __future__ import annotations

from typing import Any

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig
from instructjax.models.families.family import SAME, Described, Family, Table, dense, head_width, norm, number, size
from instructjax.models.families.rope import rotary_described, rotary_fields

# Without the norms of a layer, whose names differ between families.
SHARED: Table = {
    "embed_tokens.weight": (SAME, ("trunk/token_embedding",)),
    **dense("layers.{}.self_attn.q_proj", "trunk/blocks/attention/query"),
    **dense("layers.{}.self_attn.k_proj", "trunk/blocks/attention/key"),
    **dense("layers.{}.self_attn.v_proj", "trunk/blocks/attention/value"),
    **dense("layers.{}.self_attn.o_proj", "trunk/blocks/attention/out"),
    **dense("layers.{}.mlp.gate_proj", "trunk/blocks/feed_forward/gate"),
    **dense("layers.{}.mlp.up_proj", "trunk/blocks/feed_forward/in"),
    **dense("layers.{}.mlp.down_proj", "trunk/blocks/feed_forward/out"),
    **norm("norm", "trunk/final_norm"),
}
TABLE: Table = {
    **SHARED,
    **norm("layers.{}.input_layernorm", "trunk/blocks/attention_norm"),
    **norm("layers.{}.post_attention_layernorm", "trunk/blocks/feed_forward_norm"),
}
# The norms of each head of queries and keys, in some families.
HEAD_NORMS: Table = {
    **norm("layers.{}.self_attn.q_norm", "trunk/blocks/attention/query_norm"),
    **norm("layers.{}.self_attn.k_norm", "trunk/blocks/attention/key_norm"),
}


def shared_fields(described: Described, where: str, epsilon: float = 1e-6) -> dict[str, Any]:
    """Converts the keys that these families share to fields of a TransformerConfig: sizes, RMSNorm, SwiGLU, tied.

    Args:
      described: a config.json.
      where: the file, for errors.
      epsilon: of norms if the file does not have it.

    Raises:
      CheckpointError: a key is missing, or its value is not supported.
    """
    heads = size(described, "num_attention_heads", where)
    groups = size(described, "num_key_value_heads", where, heads)
    if heads % groups:
        raise CheckpointError(
            f"{where}: num_key_value_heads: expected a divisor of num_attention_heads ({heads}), found {groups}"
        )
    given = described.get("head_dim") is not None
    width = size(described, "head_dim", where) if given else None
    return {
        "vocab_size": size(described, "vocab_size", where),
        "num_layers": size(described, "num_hidden_layers", where),
        "d_model": size(described, "hidden_size", where),
        "num_heads": heads,
        "num_kv_heads": None if groups == heads else groups,
        "d_head": width or head_width(described, "hidden_size", "num_attention_heads", where),
        "d_ff": size(described, "intermediate_size", where),
        "max_length": size(described, "max_position_embeddings", where),
        "norm": "rms",
        "norm_epsilon": number(described, "rms_norm_eps", where, epsilon),
        "activation": "silu",
        "gated": True,
        "biases": "none",
        "tied": described.get("tie_word_embeddings", False),
    }


def shared_described(config: TransformerConfig) -> dict[str, Any]:
    """Converts a config to the keys that these families share; the inverse of `shared_fields`."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
    }


def _fields(described: Described, where: str) -> dict[str, Any]:
    both = [described.get(key, False) for key in ("attention_bias", "mlp_bias")]
    if both[0] != both[1]:
        raise CheckpointError(f"{where}: attention_bias, mlp_bias: expected the same, found {both[0]} and {both[1]}")
    biases = {"biases": "all" if both[0] else "none"}
    return shared_fields(described, where) | rotary_fields(described, where) | biases


def _described(config: TransformerConfig) -> dict[str, Any]:
    biases = {key: config.biases == "all" for key in ("attention_bias", "mlp_bias")}
    return shared_described(config) | rotary_described(config) | biases


FAMILY = Family(
    model_type="llama",
    language_model="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    prefix="model.",
    table=TABLE,
    supported={
        "hidden_act": ("silu",),
        "attention_bias": (False, True),
        "mlp_bias": (False, True),
        "tie_word_embeddings": (False, True),
    },
    fields=_fields,
    described=_described,
)
