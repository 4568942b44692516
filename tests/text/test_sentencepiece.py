"""The tokenizer is lossless, and parts of a text can be encoded separately."""

import io
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from instructjax import records
from instructjax.errors import TokenizerError
from instructjax.records import Text
from instructjax.text import export, gguf
from instructjax.text.sentencepiece import SentencePieceTokenizer

WORDS = "fox dog owl red blue big small runs sleeps the a and in forest river one two count list".split()


def documents(count=500):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield "\n".join(" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) + " ." for _ in range(2))


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(documents(), 380)


# Text as people write it, text that looks like pieces, and characters that SentencePiece treats specially.
texts = st.lists(
    st.text() | st.sampled_from([*WORDS, " ", "  ", "\n", "\n\n", "\t", "\r\n", "\0", "▁", "▁▁", "</s>", "<0x41>", "é"])
).map("".join)


@given(texts)
def test_decode_inverts_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


RANGES = ((0, 0x250), (0, 0xD800), (0xE000, 0x110000))  # of code points: most are Latin, none is a surrogate


@pytest.mark.slow
def test_a_million_random_strings_survive_records_and_tokens(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(1000):
        low, high = np.array(RANGES)[rng.integers(len(RANGES), size=(1000, 8))].transpose(2, 0, 1)
        points, lengths = rng.integers(low, high), rng.integers(1, 9, size=1000)
        for row, length in zip(points, lengths, strict=True):
            text = "".join(map(chr, row[:length]))
            assert records.parse(records.to_json(Text(text=text)), Text).text == text
            assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts, texts)
def test_text_around_a_line_break_may_be_encoded_separately(tokenizer, prompt, response):
    line_break = tokenizer.encode("\n")
    assert len(line_break) == 1
    joined = tokenizer.encode(prompt + "\n" + response)
    assert joined == tokenizer.encode(prompt + "\n") + tokenizer.encode(response)
    assert joined == tokenizer.encode(prompt) + line_break + tokenizer.encode(response)


@given(texts)
def test_no_text_gives_a_special_token(tokenizer, text):
    assert not {tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id} & set(tokenizer.encode(text))


@given(texts, st.integers(0, 3))
def test_padding_and_eos_give_no_text(tokenizer, text, padding):
    ids = [tokenizer.pad_id] * padding + tokenizer.encode(text) + [tokenizer.eos_id] + [tokenizer.pad_id] * padding
    assert tokenizer.decode(np.array(ids, np.int32)) == text


@given(st.lists(st.integers(0, 379)))
def test_any_sampled_tokens_can_be_decoded(tokenizer, ids):
    tokenizer.decode(ids).encode("utf-8")


def test_frequent_words_are_single_tokens(tokenizer):
    for word in WORDS:
        assert len(tokenizer.encode(f" {word}")) == 1, word
    assert tokenizer.vocab_size == 380


def test_training_is_deterministic_and_depends_on_the_text(tokenizer):
    again = SentencePieceTokenizer.train(documents(), 380)
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again.fingerprint == tokenizer.fingerprint
    assert SentencePieceTokenizer.train(documents(400), 370).fingerprint != tokenizer.fingerprint


def test_long_lines_are_used_in_training():
    assert SentencePieceTokenizer.train(["word " * 10_000], 268).encode(" word") != SentencePieceTokenizer.train(
        ["w o r d "], 267
    ).encode(" word")


def test_bytes_and_files_keep_the_model(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "tokenizer.model")
    for copy in (
        SentencePieceTokenizer.load(tmp_path / "new" / "tokenizer.model"),
        SentencePieceTokenizer.from_bytes(tokenizer.to_bytes()),
    ):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.encode("the fox\nruns") == tokenizer.encode("the fox\nruns")


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["abc abc"], 5000, r"expected at most \d+ for so little text, found 5000"),
        (["abc abc"], 100, r"expected at least 264 for these characters, found 100"),
        ([], 300, r"expected text to learn 300 pieces from, found none"),
        (["abc"], 0, r"expected a size that SentencePiece can train, found 0"),
    ],
)
def test_an_impossible_vocabulary_names_the_config_key(texts, size, message):
    with pytest.raises(TokenizerError, match=r"^tokenizer\.vocab_size: " + message):
        SentencePieceTokenizer.train(texts, size)


def test_the_size_that_an_error_suggests_works():
    with pytest.raises(TokenizerError) as caught:
        SentencePieceTokenizer.train(documents(), 50_000)
    possible = int(str(caught.value).split("at most ")[1].split()[0])
    assert SentencePieceTokenizer.train(documents(), possible).vocab_size == possible


@pytest.mark.parametrize("data", [b"", b"other data"])
def test_other_data_is_rejected_as_a_tokenizer(tmp_path, data):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(TokenizerError, match="found no such file"):
        SentencePieceTokenizer.load(path)
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=f"{path}: expected a SentencePiece model"):
        SentencePieceTokenizer.load(path)


def test_a_model_that_alters_text_is_rejected():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=documents(), model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(TokenizerError, match="expected a model that gives back every text"):
        SentencePieceTokenizer.from_bytes(model.getvalue())


def test_a_unigram_is_not_exported(tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents()), model_writer=model, vocab_size=380, model_type="unigram",
        byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        user_defined_symbols=["\n"],
    )  # fmt: skip
    unigram = SentencePieceTokenizer.from_bytes(model.getvalue())
    for write in (export.tokenizer_json, lambda given: gguf.metadata_of(given, given.eos_ids, "")):
        assert write(tokenizer)
        with pytest.raises(TokenizerError, match="expected a byte-pair encoding to export, found a Unigram"):
            write(unigram)


def test_training_is_silent():
    code = (
        "from instructjax.text.sentencepiece import SentencePieceTokenizer as Tokenizer\n"
        "Tokenizer.train(['abc abc abd'] * 9, 266)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_rare_characters_become_bytes():
    """300 lines with thousands of characters, such as Chinese ones, give a small vocabulary."""
    lines = [f"the fox {chr(0x4E00 + i)}{chr(0x5E00 + i)} 狐 sleeps" for i in range(300)]
    with pytest.raises(TokenizerError, match="a smaller tokenizer.character_coverage"):
        SentencePieceTokenizer.train(lines, 320)
    tokenizer = SentencePieceTokenizer.train(lines, 320, character_coverage=0.9)
    assert len(tokenizer.encode("狐")) == 1 and len(tokenizer.encode(chr(0x4E05))) == 3
    assert all(tokenizer.decode(tokenizer.encode(line)) == line for line in lines)


def test_a_line_with_the_character_that_sentencepiece_skips_is_learned_from():
    with_it = ["the fox sleeps \u2585 the owl sleeps"] * 20
    tokenizer = SentencePieceTokenizer.train(with_it, 280)
    assert (
        tokenizer.fingerprint
        == SentencePieceTokenizer.train(["the fox sleeps \n the owl sleeps"] * 20, 280).fingerprint
    )
    assert tokenizer.decode(tokenizer.encode(with_it[0])) == with_it[0]
