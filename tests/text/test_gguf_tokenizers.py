"""The tokenizer of a GGUF file, rebuilt, against tokenizers that are built by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import TokenizerError
from instructjax.text import gguf as text_gguf
from instructjax.text import tokenizer_files
from instructjax.text.huggingface import HuggingFaceTokenizer
from instructjax.text.sentencepiece import SentencePieceTokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

LINES = ["the fox's 12 owls, 1234 é\n\n", " 2024 THE  owl\t狐 e\u0301"] * 8
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>{% endif %}"


def trained(splits, normalizer=None, ignore_merges=False):
    """Returns a byte-level BPE that splits text in this way."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    if normalizer:
        found.normalizer = normalizer
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    found.train_from_iterator(LINES, trainer)
    return found


def split(digits):
    """Returns the split of Llama 3 or Qwen2, as their tokenizer.json has it."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


GPT2 = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
KINDS = {
    "gpt-2": trained(GPT2),
    "smollm": trained([tokenizers.pre_tokenizers.Digits(individual_digits=True), *GPT2]),
    "llama-bpe": trained(split(r"\p{N}{1,3}"), ignore_merges=True),
    "qwen2": trained(split(r"\p{N}"), normalizer=tokenizers.normalizers.NFC()),
}


def add_tokenizer(writer, pre, **ids):
    """Adds the tokenizer of this kind to a file."""
    model = json.loads(KINDS[pre].to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for name, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token("bos" in ids)
    writer.add_chat_template(TEMPLATE)


def write(path, pre, **ids):
    """Writes a file with a tokenizer only."""
    writer = gguf.GGUFWriter(path, "llama")
    add_tokenizer(writer, pre, **ids)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {pre: tokenizer_files.load(write(folder / f"{pre}.gguf", pre, eos=2, bos=1)) for pre in KINDS}


words = st.sampled_from(["the", " fox", "\n", " ", "owl", "12", "2024", "'s", "'S", "é", "e\u0301", "狐", "\t", ","])


@pytest.mark.parametrize("pre", KINDS)
@given(st.text(max_size=20) | st.lists(words).map("".join))
def test_ids_are_those_of_the_tokenizer_that_was_written(rebuilt, pre, text):
    assert rebuilt[pre].encode(text) == KINDS[pre].encode(text).ids


@pytest.mark.parametrize("pre", KINDS)
def test_a_written_tokenizer_is_read_back_unchanged(rebuilt, tmp_path, pre):
    tokenizer = rebuilt[pre]
    writer = gguf.GGUFWriter(tmp_path / "again.gguf", "llama")
    for name, value in text_gguf.metadata_of(tokenizer, (2, 0), tokenizer.chat_template).items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = tokenizer_files.load(tmp_path / "again.gguf")
    assert found.fingerprint == tokenizer.fingerprint


def test_pieces_are_written_with_scores_and_kinds():
    tokenizer = SentencePieceTokenizer.train(LINES, 310)
    found = text_gguf.metadata_of(tokenizer, (tokenizer.eos_id,), "")
    tokens, kinds = (found[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert tokens[:4] == ["<pad>", "</s>", "<unk>", "\n"] and kinds[:5] == [3, 3, 2, 4, 6]
    assert len(tokens) == len(found["tokenizer.ggml.scores"]) == tokenizer.vocab_size
    assert not found["tokenizer.ggml.add_bos_token"] and not found["tokenizer.ggml.add_space_prefix"]


def test_tokenizers_that_llama_cpp_does_not_know_are_refused(rebuilt):
    described = json.loads(rebuilt["gpt-2"].without_settings())
    described["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    described["pre_tokenizer"]["use_regex"] = True
    other = HuggingFaceTokenizer.from_bytes(json.dumps(described).encode())
    with pytest.raises(TokenizerError, match="splits text like gpt-2, smollm, llama-bpe, qwen2, for GGUF, found"):
        text_gguf.metadata_of(other, (0,), "")
    with pytest.raises(TokenizerError, match="expected at most 3 EOS for GGUF, found 4"):
        text_gguf.metadata_of(rebuilt["gpt-2"], (0, 1, 2, 3), "")


def test_the_kinds_differ():
    assert len({tuple(kind.encode(LINES[0]).tokens) for kind in KINDS.values()}) >= 3


def test_special_tokens_and_template(rebuilt, tmp_path):
    found = rebuilt["smollm"]
    assert (found.bos, found.eos_ids, found.chat_template) == ((1,), (0, 2), TEMPLATE)
    assert found.vocab_size == KINDS["smollm"].get_vocab_size()
    bare = tokenizer_files.load(write(tmp_path / "bare.gguf", "gpt-2"))
    assert bare.bos == () and bare.eos_ids == (0,)
    with pytest.raises(TokenizerError, match="expected the token 100000, which is EOS elsewhere, found none"):
        tokenizer_files.load(write(tmp_path / "wrong.gguf", "gpt-2", eos=100_000))
