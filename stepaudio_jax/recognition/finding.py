"""What was recognised."""

import dataclasses
from typing import Literal

Purpose = Literal["weights", "tokenizer", "sound"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a file or folder is, and what to do.

    Attributes:
        what: the rest of a sentence that begins with the path or with "it": "is a Git LFS pointer
        ..".
        remedy: what the user should do, without a capital and a full stop.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"
