"""Divide work among independent processes: the meaning of `--shard 2/4`.

Promises: the parts together are the whole, and no two overlap. It starts no process.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from asr_doge.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This part of a list: every `count`-th item, so that the parts are similar.

        Raises:
            ConfigError: it would be empty.
        """
        part = list(items[self.index - 1 :: self.count])
        if not part:
            raise ConfigError(f"--shard {self}: there are only {len(items)} samples; use fewer parts")
        return part

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(1, 1)


def parse_shard(text: str | None) -> Shard:
    """`2/4` as a shard; None is the whole.

    Raises:
        ConfigError: it is not such a part.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {text} cannot be used: write 1/4, 2/4, 3/4 or 4/4 for a part of four")
    return Shard(int(match[1]), int(match[2]))
