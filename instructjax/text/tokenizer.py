"""The interface of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from etils import epath


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back: `SentencePieceTokenizer` (SentencePiece) or `BytePairTokenizer` (GPT-2's).

    Attributes:
      pad_id: fills rows; no text is encoded to it, and it is not EOS. Masks are carried next to
        the tokens and never computed from this id.
      eos_id: ends every document and every response; no text is encoded to it.
    """

    pad_id: int
    eos_id: int

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different vocabularies."""

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without EOS."""

    def encode_opening(self, text: str) -> list[int]:
        """Encodes a text that another follows, such as prompt and separator before a response."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids. PAD and EOS are skipped."""

    def to_bytes(self) -> bytes:
        """Returns the whole tokenizer, for `from_bytes`."""

    def save(self, path: epath.PathLike) -> None:
        """Writes it to a file, for `load`."""
