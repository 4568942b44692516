"""The interface of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from etils import epath


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back: `SentencePieceTokenizer` (ours) or `HuggingFaceTokenizer` (of other models).

    Attributes:
      pad_id: fills rows; no text is encoded to it, and it is not EOS. Masks are carried next to
        the tokens and never computed from this id.
      eos_id: ends every document, and every response without a chat template; no text is encoded to it.
      eos_ids: all tokens at which a sampled response ends; the first is `eos_id`.
      bos: begins every document, and every prompt without a chat template: one token, or none.
      chat_template: the jinja template that came with the model, or "".
      altered: a text, and what it becomes when it is encoded and decoded; None if no text is known that changes.
    """

    pad_id: int
    eos_id: int
    eos_ids: tuple[int, ...]
    bos: tuple[int, ...]
    chat_template: str

    @property
    def altered(self) -> tuple[str, str] | None:
        """An example of a text that is not given back, if there is one."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that differ between different vocabularies."""

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without BOS and EOS."""

    def encode_opening(self, text: str) -> list[int]:
        """Encodes BOS, and a text that another follows, such as prompt and separator before a response."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids. PAD, BOS and EOS are skipped."""

    def lost(self, text: str) -> str:
        """Returns the first character of a text that has no token, and would be left out; "" if there is none."""

    def to_bytes(self) -> bytes:
        """Returns the whole tokenizer, for `from_bytes`."""

    def save(self, path: epath.PathLike) -> None:
        """Writes it to a file, for `load`."""
