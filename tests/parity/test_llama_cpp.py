"""Parity with llama.cpp: its server, started on exported GGUF files and asked over HTTP.

The server reads the chat template, the tokenizer and the weights from the file alone.
"""

import dataclasses

import pytest
from benchmarks import serving

from instructjax.conversation import Conversation, Message
from instructjax.data.layouts import Layout
from instructjax.models.transformer import LanguageModel
from instructjax.stages import exported
from instructjax.stages.trained import Trained
from instructjax.text import tokenizer_files
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests import decoders, fakes
from tests.recipes import LINES
from tests.text import test_gguf_tokenizers as byte_pairs

pytestmark = pytest.mark.parity
pytest.importorskip("xllamacpp", reason="needs the extra serve")
pytest.importorskip("gguf", reason="needs the extra gguf")

PIECES = SentencePieceTokenizer.train(LINES, 290)
SIZES = {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_head": 16, "d_ff": 96, "max_length": 64}
GPT2 = dataclasses.replace(fakes.CONFIG, **SIZES)
LLAMA = dataclasses.replace(decoders.LLAMA, **SIZES, num_kv_heads=2, tied=True, cache_by_layer=True)
SMOLLM = ("llama", "smollm", "chat")
POLICIES = [("gpt2", "pieces", "separator"), ("gpt2", "gpt-2", "separator"), ("llama", "pieces", "separator"), SMOLLM]
POLICIES += [("qwen2", "qwen2", "chat"), ("qwen3", "llama-bpe", "separator")]
MODELS = {"gpt2": GPT2, "llama": LLAMA}
MODELS["qwen2"] = dataclasses.replace(LLAMA, biases="query_key_value")
MODELS["qwen3"] = dataclasses.replace(LLAMA, query_key_norm="head", d_head=32, tied=False)
PROMPTS = [f"{line} {('OWL', '12', ' ')[number % 3]}\n{number} é" for number, line in enumerate(LINES)][:50]


@pytest.fixture(scope="module", params=POLICIES, ids=["-".join(names) for names in POLICIES])
def served(request, tmp_path_factory):
    """Returns (`ask` of a server, the policy that it serves, its layout)."""
    model, pre, kind = request.param
    folder = tmp_path_factory.mktemp("served")
    if pre == "pieces":
        tokenizer = PIECES
    else:
        ids = {"eos": 2} if kind == "chat" else {"eos": 2, "bos": 1}
        tokenizer = tokenizer_files.load(byte_pairs.write(folder / "tokenizer.gguf", pre, **ids))
    config = dataclasses.replace(MODELS[model], vocab_size=tokenizer.vocab_size)
    policy = Trained(LanguageModel(config), fakes.params(LanguageModel(config), noise=0.4), tokenizer)
    layout = Layout(tokenizer, "\n", max_prompt=48, max_response=16, kind=kind)
    exported.write_gguf(policy, layout, folder / "model.gguf")
    with serving.serve(folder / "model.gguf") as asked:
        yield asked, policy, layout


def test_fifty_greedy_answers_and_the_distributions_are_ours(served, capsys):
    asked, policy, layout = served
    found = serving.compare(asked, policy, layout, PROMPTS)
    with capsys.disabled():
        print(f"\n  {len(PROMPTS)} prompts, {found['tokens']} tokens: KL {found['kl']:.1e}", end="")
    assert (found["prompts"], found["answers"]) == (1.0, 1.0)
    assert abs(found["loss_difference"]) < 1e-3 and abs(found["kl"]) < 1e-4


def test_a_conversation_has_the_same_tokens(served):
    asked, _, layout = served
    messages = [Message("user", "owl"), Message("assistant", "red"), Message("user", "fox")]
    prompt = Conversation(messages)
    assert serving.prompt_tokens(asked, prompt) == layout.encode_prompt(prompt)


def test_the_openai_api_gives_the_same_answers(served):
    asked, policy, layout = served
    (answer,) = serving.responses(policy, layout, ["the owl"], 0.0)
    message = {"role": "user", "content": "the owl"}
    found = asked("/v1/chat/completions", messages=[message], temperature=0, max_tokens=layout.max_response)
    text = layout.decode(answer)
    assert found["choices"][0]["message"]["content"].replace("\ufffd", "").strip() == text.replace("\ufffd", "").strip()
