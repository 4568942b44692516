"""What the package asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from etils import epath


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back: `SentencePieceTokenizer` (SentencePiece) or `BytePairTokenizer` (GPT-2's).

    Attributes:
      pad_id: fills rows; no text is encoded to it, and it is not EOS. Masks are carried beside
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
        """The token ids of a text, without EOS."""

    def encode_opening(self, text: str) -> list[int]:
        """The token ids that a text has where another follows it: prompt and separator before a response."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, in which PAD and EOS are nothing."""

    def to_bytes(self) -> bytes:
        """The whole of it, for `from_bytes`."""

    def save(self, path: epath.PathLike) -> None:
        """Writes it to a file, for `load`."""
