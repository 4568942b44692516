"""Small decoders with the choices of known families, and an independent forward pass in NumPy in float64."""

import dataclasses
import math

import numpy as np

from instructjax.models.config import TransformerConfig

BASE = TransformerConfig(
    vocab_size=19, num_layers=3, d_model=12, num_heads=4, d_head=4, d_ff=20, max_length=32, cache_by_layer=False
)
LLAMA = dataclasses.replace(
    BASE,
    num_kv_heads=2,
    norm="rms",
    norm_epsilon=1e-6,
    positions="rotary",
    activation="silu",
    gated=True,
    biases="none",
    tied=False,
)
GEMMA = dataclasses.replace(
    LLAMA,
    norm="rms_unit_offset",
    norm_placement="both",
    activation="gelu_tanh",
    query_key_norm="head",
    query_scalar=6.0,
    score_cap=3.0,
    logits_cap=5.0,
    scaled_embedding=True,
    tied=True,
    local_window=3,
    window_pattern="LLD",
    rotary_base=1e6,
    rotary_local_base=1e4,
)
CHOICES = {
    "llama": LLAMA,
    "llama3": dataclasses.replace(
        LLAMA, d_head=8, num_kv_heads=1, rotary_scaling="llama3", rotary_factor=8.0, rotary_original_length=64
    ),
    "olmo with yarn": dataclasses.replace(
        LLAMA,
        norm_placement="post",
        query_key_norm="width",
        d_head=16,
        rotary_scaling="yarn",
        rotary_factor=4.0,
        rotary_original_length=40,
        rotary_fast=8.0,
        rotary_amplitude=1.13,
        biases="query_key_value",
        local_window=4,
        window_pattern="L",
    ),
    "gemma": GEMMA,
    "neox": dataclasses.replace(
        BASE,
        positions="rotary",
        d_head=8,
        rotary_fraction=0.5,
        rotary_scaling="linear",
        rotary_factor=4.0,
        parallel_residual=True,
        activation="gelu",
        tied=False,
    ),
}


def logits(config, params, tokens, segments, positions):
    """Computes the logits of one row [T] in float64, from the definitions: a loop over layers, heads and queries."""
    weights = _float64(params)
    trunk, length = weights["trunk"], len(tokens)
    x = trunk["token_embedding"][tokens]
    if config.scaled_embedding:
        x = x * math.sqrt(config.d_model)
    if config.positions == "learned":
        x = x + trunk["position_embedding"][positions]
    for layer in range(config.num_layers):
        block = _layer(trunk["blocks"], layer)
        kind = config.window_pattern[layer % len(config.window_pattern)]
        is_local = config.local_window is not None and kind == "L"

        def visible(i, is_local=is_local):
            window = config.local_window if is_local else length
            return [j for j in range(i + 1) if segments[i] == segments[j] and positions[i] - positions[j] < window]

        def sublayer(name, compute, x, block=block):
            y = x if config.norm_placement == "post" else _norm(config, x, block[f"{name}_norm"])
            y = compute(y)
            return y if config.norm_placement == "pre" else _norm(config, y, block[f"{name}_out_norm"])

        def attend(y, block=block, is_local=is_local, visible=visible):
            return _attention(config, block["attention"], y, positions, is_local, visible)

        after = x + sublayer("attention", attend, x)
        source = x if config.parallel_residual else after
        x = after + sublayer("feed_forward", lambda y, block=block: _feed(config, block["feed_forward"], y), source)
    x = _norm(config, x, trunk["final_norm"])
    found = x @ (trunk["token_embedding"] if config.tied else weights["unembedding"]).T
    return config.logits_cap * np.tanh(found / config.logits_cap) if config.logits_cap else found


def _attention(config, weights, x, positions, is_local, visible):
    length, width = len(x), config.d_head
    groups = config.num_kv_heads or config.num_heads

    def project(name, heads):
        y = _dense(x, weights[name])
        if config.query_key_norm == "width" and name != "value":
            y = _norm(config, y, weights[f"{name}_norm"])
        y = y.reshape(length, heads, width)
        if config.query_key_norm == "head" and name != "value":
            y = _norm(config, y, weights[f"{name}_norm"])
        return y

    query, key, value = project("query", config.num_heads), project("key", groups), project("value", groups)
    if config.positions == "rotary":
        query, key = (_rotated(config, y, positions, is_local) for y in (query, key))
    mixed = np.zeros((length, config.num_heads, width))
    for head in range(config.num_heads):
        shared = head // (config.num_heads // groups)
        for i in range(length):
            seen = visible(i)
            scores = key[seen, shared] @ query[i, head] / math.sqrt(config.query_scalar or width)
            if config.score_cap:
                scores = config.score_cap * np.tanh(scores / config.score_cap)
            weight = np.exp(scores - scores.max())
            mixed[i, head] = weight / weight.sum() @ value[seen, shared]
    return _dense(mixed.reshape(length, -1), weights["out"])


def _rotated(config, x, positions, is_local):
    """Multiplies pairs, as complex numbers, by e^(i angle)."""
    half = int(config.d_head * config.rotary_fraction) // 2
    is_scaled = not (is_local and config.rotary_local_base)
    base = config.rotary_base if is_scaled else config.rotary_local_base
    frequencies = np.array([base ** (-i / half) for i in range(half)])
    amplitude = 1.0
    if is_scaled and config.rotary_scaling:
        frequencies = np.array([_scaled(config, i, f, half) for i, f in enumerate(frequencies)])
        amplitude = config.rotary_amplitude
    turned = x[..., :half] + 1j * x[..., half : 2 * half]
    turned = turned * amplitude * np.exp(1j * np.asarray(positions)[:, None, None] * frequencies)
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)


def _scaled(config, i, frequency, half):
    """Follows the equations of the three papers, in wavelengths."""
    if config.rotary_scaling == "linear":
        return frequency / config.rotary_factor
    length, low, high = config.rotary_original_length, config.rotary_slow, config.rotary_fast
    if config.rotary_scaling == "llama3":
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            return frequency
        if wavelength > length / low:
            return frequency / config.rotary_factor
        smooth = (length / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / config.rotary_factor + smooth * frequency
    first, last = (
        half * math.log(length / (2 * math.pi * rotations)) / math.log(config.rotary_base) for rotations in (high, low)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * half - 1)
    share = min(max((i - first) / (last - first), 0.0), 1.0)
    return frequency * (1 - share) + frequency / config.rotary_factor * share


def _feed(config, weights, x):
    def activation(y):
        if config.activation == "silu":
            return y / (1 + np.exp(-y))
        if config.activation == "gelu":
            return y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    hidden = _dense(x, weights["in"])
    hidden = activation(_dense(x, weights["gate"])) * hidden if config.gated else activation(hidden)
    return _dense(hidden, weights["out"])


def _norm(config, x, weights):
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
    x = x * (1 + weights["scale"] if config.norm == "rms_unit_offset" else weights["scale"])
    return x + weights["bias"] if "bias" in weights else x


def _dense(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def _float64(tree):
    return {k: _float64(v) for k, v in tree.items()} if hasattr(tree, "items") else np.asarray(tree, np.float64)


def _layer(tree, layer):
    return {k: _layer(v, layer) for k, v in tree.items()} if isinstance(tree, dict) else tree[layer]
