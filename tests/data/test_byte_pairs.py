"""GPT-2's kind of vocabulary, learned here, and ours for programs that read tokenizer.json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import sentencepiece_json, vocabulary
from instructjax.data.byte_pairs import END_OF_TEXT, BytePairTokenizer
from instructjax.data.tokenizer import Tokenizer
from instructjax.errors import TokenizerError

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

LINES = ["the quick brown fox jumps over the lazy dog .", "say it : the owl, 3 cats; and\ta fox!", "é ÿ 狐 fox's"] * 4


def learned(lines=LINES, size=400):
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(lines, vocab_size=size, special_tokens=[END_OF_TEXT], show_progress=False)
    return pairs


PAIRS = learned()
BPE = BytePairTokenizer.from_bytes(PAIRS.to_str().encode())
PIECES = Tokenizer.train(LINES, 330)
CONVERTED = tokenizers.Tokenizer.from_str(sentencepiece_json.convert(PIECES).decode())

words = st.sampled_from(["the", " fox", "\n", " ", "  ", "owl", "ÿ", "狐", "\ufffd", "<|endoftext|>", "'s", "\t", "12"])
texts = st.text() | st.lists(words).map("".join)


@given(texts)
def test_every_text_comes_back_and_has_neither_pad_nor_eos(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert not {BPE.pad_id, BPE.eos_id} & set(ids)
    assert BPE.decode([BPE.pad_id, *ids, BPE.eos_id, BPE.pad_id]) == text


@given(texts, st.sampled_from(["fox", "12", "'s", "<|endoftext|>", "狐"]))
def test_a_line_break_keeps_prompt_and_response_apart(prompt, response):
    """Unless the response begins with white space."""
    assert BPE.encode(prompt + "\n" + response) == BPE.encode(prompt + "\n") + BPE.encode(response)


@given(st.lists(st.sampled_from([*"abcfox thew ", " fox", "owl", "3"])).map("".join))
def test_it_is_the_vocabulary_that_was_given(text):
    assert BPE.encode(text) == PAIRS.encode(text).ids


def test_ids():
    assert BPE.vocab_size == PAIRS.get_vocab_size()
    assert PAIRS.id_to_token(BPE.eos_id) == END_OF_TEXT and BPE.pad_id != BPE.eos_id
    assert len(BPE.fingerprint) == 16 and BPE.fingerprint != BytePairTokenizer(learned(size=390).to_str().encode())


def test_files(tmp_path):
    BPE.save(tmp_path / "one" / "tokenizer.json")
    (tmp_path / "two").mkdir()
    PAIRS.save_model(str(tmp_path / "two"))
    PIECES.save(tmp_path / "pieces.model")
    text = "the quick owl's ÿ"
    for place in ("one", "one/tokenizer.json", "two"):
        found = vocabulary.load(tmp_path / place)
        assert found.encode(text) == BPE.encode(text) and found.eos_id == BPE.eos_id
        assert vocabulary.from_bytes(found.to_bytes()).fingerprint == found.fingerprint
    assert vocabulary.load(tmp_path / "pieces.model").encode(text) == PIECES.encode(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "expected a tokenizer.json of a byte-level BPE, found KeyError('model')"),
        (b'{"model": {"type": "Unigram"}}', "expected a byte-level BPE, found Unigram"),
        (b'{"model": ', "expected a tokenizer.json of a byte-level BPE"),
        (b"\x00\x01", "expected a SentencePiece model"),
        (b"", "expected a SentencePiece model"),
    ],
)
def test_what_is_no_tokenizer(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(TokenizerError) as error:
        vocabulary.load(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path}/file: {message}") and "\n" not in str(error.value)


def test_a_vocabulary_without_end_of_text_or_without_all_bytes(tmp_path):
    described = json.loads(PAIRS.to_str())
    for token in (END_OF_TEXT, "ÿ"):
        changed = json.loads(json.dumps(described))
        changed["added_tokens"] = [] if token == END_OF_TEXT else changed["added_tokens"]
        del changed["model"]["vocab"][token]
        with pytest.raises(TokenizerError, match="expected a vocabulary with <.endoftext.> and all bytes, found none"):
            BytePairTokenizer.from_bytes(json.dumps(changed).encode())
    for place, message in (("nowhere", "found no such file"), ("", "merges.txt, found neither")):
        with pytest.raises(TokenizerError, match=message):
            vocabulary.load(tmp_path / place)


class TestConversion:
    @given(st.text().filter(lambda text: not set(text) & {"\u2581", "<"}) | st.lists(words).map("".join))
    def test_the_same_ids_and_the_same_text(self, text):
        text = text.replace("\u2581", "")
        assert CONVERTED.encode(text).ids == PIECES.encode(text)
        assert CONVERTED.decode(PIECES.encode(text), skip_special_tokens=False) == text

    def test_sizes(self):
        assert CONVERTED.get_vocab_size() == PIECES.vocab_size
        assert CONVERTED.token_to_id("</s>") == PIECES.eos_id and CONVERTED.token_to_id("<pad>") == PIECES.pad_id


@pytest.mark.parity
@pytest.mark.parametrize("ours", [BPE, PIECES], ids=["byte pairs", "pieces"])
def test_their_auto_class_loads_either(tmp_path, ours):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    for name, content in vocabulary.pretrained_files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (*LINES, "fox  ÿ\n\n 狐"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.eos_id
