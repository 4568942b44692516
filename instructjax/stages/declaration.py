"""What a stage's decorator declares about it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a stage declares about itself; see `stage.stage`."""

    name: str
    after: tuple[str, ...]
    uses: tuple[str, ...]
    policy: str | None
    section: str
    sections: tuple[str, ...]
    may_change: tuple[str, ...]
