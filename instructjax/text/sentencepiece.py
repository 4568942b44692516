"""A lossless SentencePiece tokenizer.

It is a byte-pair encoding, like GPT-3's, over Unicode characters. Text that no piece covers is encoded as
bytes, so no text is unknown. Nothing is normalized. The package relies on two properties, which hold for
all texts:

    decode(encode(a)) == a
    encode(a + "\\n" + b) == encode(a) + encode("\\n") + encode(b)

Because of the second, no space is put in front of a text (the "dummy prefix", on by default in
SentencePiece), and a line break is always its own piece. So a prompt that ends in a line break and its
response can be encoded separately, and give the same tokens as in one document of pretraining text. And
the tokens that a policy samples after a prompt decode to its response without losing or adding a space. As
in GPT-3, the cost is that a word at the start of a line ("fox") and inside a line ("▁fox") are different
pieces.

A vocabulary holds 3 special pieces, the line break, 256 bytes, the characters of the training text, and
merges. A word usually takes two or three merges, so 250 words need about 1,000 pieces.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from instructjax import files
from instructjax.errors import TokenizerError

# SentencePiece writes this character for a space, so in a text it must be encoded as bytes.
_SPACE_MARK = "\u2581"
_SKIPPED = "\u2585"  # a line with it is skipped in training, so lines are split there
PIECES = "tokenizer.model"  # the usual name of the file in a model's folder
_PROBES = ("a\n b  \u2581 ", "A \u00c9 e\u0301 \ufb01 \uff17", "\t\r\0 \U0001f98a")  # a normalizer would alter them


class SentencePieceTokenizer:
    """Text to token ids and back.

    Attributes:
      pad_id: fills rows; never produced by `encode`.
      eos_id: ends every document and every response.
      unk_id: required by SentencePiece; never produced.
      eos_ids, bos, chat_template, altered: see `tokenizer.Tokenizer`.
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2
    eos_ids: tuple[int, ...] = (1,)
    bos: tuple[int, ...] = ()
    chat_template = ""
    altered: tuple[str, str] | None = None

    def __init__(self, model: bytes):
        """Takes a trained model; see `train`, `load` and `from_bytes`."""
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._space_mark = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode("utf-8")]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, character_coverage: float = 1.0) -> SentencePieceTokenizer:
        """Trains a vocabulary on texts. The same texts give the same model, byte for byte.

        Args:
          texts: documents; they are split into lines, so that no piece spans a line break.
          vocab_size: number of pieces, including the special ones and the 256 bytes.
          character_coverage: share of the text whose characters, the most frequent ones, get their own
            pieces. 1.0 suits small alphabets; for a large corpus with Chinese or emoji, 0.9995 leaves the
            rarest to bytes, and a small vocabulary needs less.

        Raises:
          TokenizerError: the texts are too short for `vocab_size`, or have too many characters.
        """
        model = io.BytesIO()
        lines = (
            part
            for text in _covered(texts, character_coverage)
            for line in text.replace(_SPACE_MARK, " ").split("\n")
            for part in line.split(_SKIPPED)
            if part
        )
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                user_defined_symbols=["\n"],
                pad_id=cls.pad_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                bos_id=-1,
                max_sentence_length=2**30,  # longer lines are skipped; the default is 4192 bytes
                num_threads=1,  # with more, the model depends on the machine
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            raise _explain(" ".join(str(error).split()), vocab_size) from None
        return cls(model.getvalue())

    @classmethod
    def from_bytes(cls, model: bytes, where: str = "tokenizer") -> SentencePieceTokenizer:
        """Reads a model that `to_bytes` returned; `where` names its source in errors.

        Raises:
          TokenizerError: the bytes are not a SentencePiece model, or the model was trained elsewhere and lacks
            the properties above.
        """
        return cls._check(model, where)

    @classmethod
    def load(cls, path: epath.PathLike) -> SentencePieceTokenizer:
        """Reads a model that `save` wrote.

        Raises:
          TokenizerError: as for `from_bytes`, or the file does not exist.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise TokenizerError(f"{path}: expected a tokenizer, found no such file")
        return cls._check(path.read_bytes(), str(path))

    @classmethod
    def _check(cls, model: bytes, where: str) -> SentencePieceTokenizer:
        try:
            tokenizer = cls(model or b"empty")  # SentencePiece accepts empty bytes as a model to be loaded later
        except Exception:  # mostly RuntimeError; others if its message is not valid text
            raise TokenizerError(f"{where}: expected a SentencePiece model, found other data") from None
        pieces = tokenizer._pieces
        ids = pieces.pad_id(), pieces.eos_id(), pieces.unk_id()
        if ids != (cls.pad_id, cls.eos_id, cls.unk_id):
            raise TokenizerError(f"{where}: expected pad, eos and unk to be 0, 1 and 2, found {ids}")
        for byte in range(256):
            if not pieces.is_byte(pieces.piece_to_id(f"<0x{byte:02X}>")):
                raise TokenizerError(
                    f"{where}: expected a model with all bytes (byte_fallback), found none for 0x{byte:02X}"
                )
        for text in _PROBES:
            if text != tokenizer.decode(tokenizer.encode(text)):
                raise TokenizerError(
                    f"{where}: expected a model that gives back every text, found one that alters {text!a}"
                )
        return tokenizer

    @classmethod
    def has_our_ids(cls, path: epath.Path) -> bool:
        """Returns whether a file is a SentencePiece model with our special ids; those of others have others."""
        try:
            pieces = cls(path.read_bytes() or b"empty")._pieces
        except Exception:  # see `_check`
            return False
        return (pieces.pad_id(), pieces.eos_id(), pieces.unk_id()) == (cls.pad_id, cls.eos_id, cls.unk_id)

    def to_bytes(self) -> bytes:
        """Returns the whole model, to be saved in a checkpoint."""
        return self._model

    def check_merges(self) -> None:
        """Raises an error unless the model merges pieces by rank, as exported tokenizers do.

        Raises:
          TokenizerError: it was trained elsewhere as a Unigram, which takes the most likely pieces instead.
        """
        scores = map(self._pieces.get_score, range(self.vocab_size))
        if not all(score.is_integer() for score in scores):  # a merge's score is minus its rank
            raise TokenizerError("tokenizer: expected a byte-pair encoding to export, found a Unigram of SentencePiece")

    def save(self, path: epath.PathLike) -> None:
        """Writes the model to a file."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, self._model)

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without EOS. "</s>" and the like are encoded as plain text."""
        if _SPACE_MARK not in text:
            return self._pieces.encode(text)
        first, *rest = (self._pieces.encode(part) for part in text.split(_SPACE_MARK))
        return [*first, *(token for part in rest for token in (*self._space_mark, *part))]

    def encode_opening(self, text: str) -> list[int]:
        """Encodes a text that another follows. Same as `encode`, because a line break is always its own piece."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids (a list or a one-dimensional array). PAD and EOS are skipped, and do not end the text.

        Bytes that are not valid UTF-8, which a sampled sequence may contain, become U+FFFD.
        """
        return self._pieces.decode([int(token) for token in ids])

    def lost(self, text: str) -> str:
        """Returns "": every text is encoded, by bytes if need be."""
        return ""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return self._pieces.vocab_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different models: the start of a SHA-256."""
        return hashlib.sha256(self._model).hexdigest()[:16]


def _covered(texts: Iterable[str], coverage: float) -> Iterable[str]:
    """Replaces the rarest characters by line breaks, at most a share of 1 - coverage of the text."""
    if coverage == 1.0:
        return texts
    texts = list(texts)
    counts = collections.Counter(char for text in texts for char in text)
    room = (1 - coverage) * sum(counts.values())
    ordered = sorted(counts, key=lambda char: (counts[char], char))
    seen = itertools.accumulate(counts[char] for char in ordered)
    rare = {ord(char): "\n" for char, total in zip(ordered, seen, strict=True) if total <= room}
    return [text.translate(rare) for text in texts]


def _explain(message: str, vocab_size: int) -> TokenizerError:
    where = "tokenizer.vocab_size"
    if limit := re.search(r"too high .* <= (\d+)", message):
        return TokenizerError(f"{where}: expected at most {limit[1]} for so little text, found {vocab_size}")
    if limit := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return TokenizerError(
            f"{where}: expected at least {limit[1]} for these characters, found {vocab_size}; "
            "a smaller tokenizer.character_coverage leaves rare ones to bytes"
        )
    if "sentences_.empty()" in message:
        return TokenizerError(f"{where}: expected text to learn {vocab_size} pieces from, found none")
    return TokenizerError(f"{where}: expected a size that SentencePiece can train, found {vocab_size} ({message})")
