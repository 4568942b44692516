"""Vocabularies of GPT-2's kind, and SentencePiece models exported as tokenizer.json."""

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import TokenizerError
from instructjax.text import export, tokenizer_files
from instructjax.text.byte_pairs import END_OF_TEXT, PAD, BytePairTokenizer
from instructjax.text.sentencepiece import SentencePieceTokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra huggingface")

LINES = [
    "the quick brown fox jumps over the lazy dog .",
    "say it : the owl, 3 cats; and\ta fox!",
    "é ÿ 狐 fox's",
    "\n\nfox\n\n  owl \n\n",
] * 4


def learned(lines=LINES, size=400):
    pairs = tokenizers.ByteLevelBPETokenizer()
    pairs.train_from_iterator(lines, vocab_size=size, special_tokens=[END_OF_TEXT], show_progress=False)
    return pairs


PAIRS = learned()
BPE = BytePairTokenizer.from_bytes(PAIRS.to_str().encode())
PIECES = SentencePieceTokenizer.train(LINES, 330)
CONVERTED = tokenizers.Tokenizer.from_str(export.tokenizer_json(PIECES).decode())

words = st.sampled_from(
    ["the", " fox", "\n", " ", "  ", "owl", "ÿ", "狐", "\ufffd", "<|endoftext|>", "<|pad|>", "'s", "\t", "12"]
)
texts = st.text() | st.lists(words).map("".join)


@given(texts)
def test_decode_inverts_encode_and_no_text_gives_pad_or_eos(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert not {BPE.pad_id, BPE.eos_id} & set(ids)
    assert BPE.decode([BPE.pad_id, *ids, BPE.eos_id, BPE.pad_id]) == text


@given(texts, texts.filter(lambda text: text and not text[0].isspace()))
def test_prompt_and_response_have_the_tokens_of_one_document(prompt, response):
    """GPT-2 encodes "\\n\\n" as one token at the end of a text, and as two before a word."""
    opening = prompt + "\n"
    assert BPE.encode(opening + response) == BPE.encode_opening(opening) + BPE.encode(response)


def test_two_line_breaks_are_one_token_only_at_the_end():
    (double,) = BPE.encode("\n\n")
    assert BPE.encode("fox\n\n") == [*BPE.encode("fox"), double]
    assert BPE.encode_opening("fox\n\n") == [*BPE.encode("fox"), *BPE.encode("\n") * 2]
    assert BPE.encode_opening("fox: ") == BPE.encode("fox: ")


@given(st.lists(st.sampled_from([*"abcfox thew ", " fox", "owl", "3"])).map("".join))
def test_the_vocabulary_is_the_given_one(text):
    assert BPE.encode(text) == PAIRS.encode(text).ids


def test_pad_and_eos_are_ids_of_the_given_vocabulary():
    assert BPE.vocab_size == PAIRS.get_vocab_size()
    assert PAIRS.id_to_token(BPE.eos_id) == END_OF_TEXT and PAIRS.id_to_token(BPE.pad_id) == "ÿ"
    smaller = BytePairTokenizer.from_bytes(learned(size=300).to_str().encode())
    assert len(BPE.fingerprint) == 16 and BPE.fingerprint != smaller.fingerprint


def test_a_vocabulary_with_its_own_pad_keeps_it():
    described = json.loads(PAIRS.to_str())
    pad = described["added_tokens"][0] | {"id": BPE.vocab_size, "content": PAD}
    content = json.dumps({**described, "added_tokens": [*described["added_tokens"], pad]}).encode()
    found = BytePairTokenizer.from_bytes(content)
    assert found.pad_id == BPE.vocab_size and found.vocab_size == BPE.vocab_size + 1
    assert found.to_bytes() == content


@pytest.mark.parametrize("written", ["ÿ ÿ", ["ÿ", "ÿ"]])
def test_merges_of_the_byte_0xff_are_left_out(written):
    described = json.loads(PAIRS.to_str())
    described["model"]["vocab"]["ÿÿ"] = PAIRS.get_vocab_size()
    merges = described["model"]["merges"]
    described["model"]["merges"] = [*(" ".join(pair) if written == "ÿ ÿ" else pair for pair in merges), written]
    found = BytePairTokenizer.from_bytes(json.dumps(described).encode())
    assert found.pad_id == BPE.pad_id and len(json.loads(found.to_bytes())["model"]["merges"]) == len(merges)
    assert found.encode("the ÿ fox") == BPE.encode("the ÿ fox")


def test_files(tmp_path):
    BPE.save(tmp_path / "one" / "tokenizer.json")
    (tmp_path / "two").mkdir()
    PAIRS.save_model(str(tmp_path / "two"))
    PIECES.save(tmp_path / "pieces.model")
    text = "the quick owl's ÿ"
    for place in ("one", "one/tokenizer.json", "two"):
        found = tokenizer_files.load(tmp_path / place)
        assert found.encode(text) == BPE.encode(text) and found.eos_id == BPE.eos_id
        assert tokenizer_files.from_bytes(found.to_bytes()).fingerprint == found.fingerprint
    assert tokenizer_files.load(tmp_path / "pieces.model").encode(text) == PIECES.encode(text)


@pytest.mark.parametrize("ours", [BPE, PIECES], ids=["byte pairs", "pieces"])
def test_an_exported_tokenizer_can_be_imported(tmp_path, ours):
    for name, content in export.pretrained_files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    found = tokenizer_files.load(tmp_path)
    assert found.fingerprint == ours.fingerprint and (found.pad_id, found.eos_id) == (ours.pad_id, ours.eos_id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "expected a tokenizer.json of a byte-level BPE, found KeyError('model')"),
        (b'{"model": {"type": "Unigram"}}', "expected a byte-level BPE, found model Unigram with decoder None"),
        (b'{"model": ', "expected a tokenizer.json of a byte-level BPE"),
        (b"\x00\x01", "expected a SentencePiece model"),
        (b"", "expected a SentencePiece model"),
    ],
)
def test_files_that_are_not_a_tokenizer_are_rejected(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(TokenizerError) as error:
        tokenizer_files.load(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path}/file: {message}") and "\n" not in str(error.value)


def test_a_vocabulary_without_end_of_text_or_without_all_bytes_is_rejected(tmp_path):
    described = json.loads(PAIRS.to_str())
    for token in (END_OF_TEXT, "ÿ"):
        changed = json.loads(json.dumps(described))
        changed["added_tokens"] = [] if token == END_OF_TEXT else changed["added_tokens"]
        del changed["model"]["vocab"][token]
        with pytest.raises(TokenizerError, match="expected a vocabulary with <.endoftext.> and all bytes, found none"):
            BytePairTokenizer.from_bytes(json.dumps(changed).encode())
    for place, message in (("nowhere", "found no such file"), ("", "merges.txt, found neither")):
        with pytest.raises(TokenizerError, match=message):
            tokenizer_files.load(tmp_path / place)


@functools.cache
def overlapping(seed):
    """Returns (a tokenizer of strings of two letters, the same as tokenizer.json)."""
    rng = random.Random(seed)
    pieces = SentencePieceTokenizer.train(["".join(rng.choices("ab ", k=20)) for _ in range(200)], 310)
    return pieces, tokenizers.Tokenizer.from_str(export.tokenizer_json(pieces).decode())


class TestConversion:
    @given(st.text().filter(lambda text: not set(text) & {"\u2581", "<"}) | st.lists(words).map("".join))
    def test_the_exported_tokenizer_gives_the_same_ids_and_text(self, text):
        text = text.replace("\u2581", "")
        assert CONVERTED.encode(text).ids == PIECES.encode(text)
        assert CONVERTED.decode(PIECES.encode(text), skip_special_tokens=False) == text

    @given(st.integers(0, 5), st.text("ab ", max_size=40))
    def test_pieces_that_can_be_split_in_many_ways_give_the_same_ids(self, seed, text):
        pieces, converted = overlapping(seed)
        assert converted.encode(text).ids == pieces.encode(text)

    def test_sizes(self):
        assert CONVERTED.get_vocab_size() == PIECES.vocab_size
        assert CONVERTED.token_to_id("</s>") == PIECES.eos_id and CONVERTED.token_to_id("<pad>") == PIECES.pad_id


@pytest.mark.parity
def test_a_tokenizer_written_by_transformers_can_be_imported(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    PAIRS.save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = tokenizer_files.load(tmp_path / "theirs")
    for text in (*LINES, "fox  ÿ\n\n 狐", "狐\n\nfox"):
        assert ours.encode(text) == theirs(text)["input_ids"] == BPE.encode(text)
    assert (ours.eos_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


@pytest.mark.parity
@pytest.mark.parametrize("ours", [BPE, PIECES], ids=["byte pairs", "pieces"])
def test_auto_tokenizer_loads_either_kind(tmp_path, ours):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    for name, content in export.pretrained_files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (*LINES, "fox  ÿ\n\n 狐", "狐\n\nfox"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
        assert theirs(text + theirs.eos_token)["input_ids"] == [*ours.encode(text), ours.eos_id]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size
