"""`process` on a Ray cluster: the recordings of a corpus are measured and validated in blocks, by any free worker.

Promises: the manifests are those of one process. A block that ends its worker is divided, so that in the end one
recording is alone: it is dropped when it has ended `MOST_ATTEMPTS` workers by itself, and named. Nothing is stored on
the way: a run that is stopped begins anew. It reads neither corpora nor transcripts.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.corpora import MISSING_AUDIO, Listed, Rejected
from asr_doge.data.manifest import Utterance
from asr_doge.data.processing import AT_ONCE, validate_each
from asr_doge.errors import DataError
from asr_doge.progress import progress_bar
from asr_doge.scaling.configuration import EngineConfig
from asr_doge.scaling.ray_engine import run_on_ray

MOST_ATTEMPTS = 2
BLOCKS_PER_WORKER = 8
"""Least blocks for each worker, so that one that is slow or lost leaves little to the others."""


@dataclass(frozen=True)
class Block:
    """Consecutive recordings of a list, identified by their start and count."""

    start: int
    count: int
    listed: tuple[Listed, ...] = field(compare=False)

    def parts(self, size: int) -> "list[Block]":
        """The block divided into blocks of at most `size` recordings."""
        cuts = range(0, self.count, size)
        return [
            Block(self.start + cut, len(self.listed[cut : cut + size]), self.listed[cut : cut + size]) for cut in cuts
        ]


class ValidationWorker:
    """Validates blocks.

    Args:
        config: of the command.
    """

    def __init__(self, config: ProcessConfig) -> None:
        self._config = config

    def start(self) -> None:
        """Load nothing."""

    def run(self, block: Block, is_last: bool = False) -> tuple[int, list[Utterance | Rejected]]:
        """The start of a block, and the results of its recordings."""
        return block.start, list(validate_each(block.listed, self._config))

    def close(self) -> None:
        """End nothing."""


def validate_on_ray(
    engine: EngineConfig, listed: Sequence[Listed], config: ProcessConfig, title: str
) -> Iterator[Utterance | Rejected]:
    """Validate recordings on a cluster, in their order.

    Raises:
        ConfigError, ASRDogeError: as in `run_on_ray`; or a recording is here and not on a worker's node.
    """
    found: dict[int, list[Utterance | Rejected]] = {}
    attempts: Counter[int] = Counter()
    with progress_bar(total=len(listed), desc=title, unit="file") as bar:

        def on_report(report: tuple[int, list[Utterance | Rejected]]) -> None:
            _check_shared(listed[report[0] : report[0] + len(report[1])], report[1])
            found[report[0]] = report[1]
            bar.update(len(report[1]))

        def retry(block: Block, reason: str) -> list[Block]:
            if block.count > 1:
                return block.parts(-(-block.count // 2))
            attempts[block.start] += 1
            if attempts[block.start] < MOST_ATTEMPTS:
                return [block]
            (source,) = block.listed
            name = source.id if isinstance(source, Rejected) else str(source.audio_path)
            detail = f"{name} ended {MOST_ATTEMPTS} workers, at last with {reason.splitlines()[0]}"
            on_report((block.start, [Rejected(source.id, "unreadable audio", detail)]))
            return []

        size = min(AT_ONCE, -(-len(listed) // (BLOCKS_PER_WORKER * engine.worker_range()[1])) or 1)
        blocks = Block(0, len(listed), tuple(listed)).parts(size)
        paths = [source.audio_path for source in listed if not isinstance(source, Rejected)]
        run_on_ray(partial(ValidationWorker, config), blocks, engine, on_report, paths, retry)
    for _, results in sorted(found.items()):
        yield from results


def _check_shared(listed: Sequence[Listed], results: Sequence[Utterance | Rejected]) -> None:
    """Refuse to drop a recording for a node that lacks its folder.

    Raises:
        DataError: a recording that a worker did not find is here.
    """
    for source, result in zip(listed, results, strict=True):
        if isinstance(source, Rejected) or not isinstance(result, Rejected) or result.reason != MISSING_AUDIO:
            continue
        if os.path.isfile(source.audio_path):  # noqa: PTH113 - False too where Path.is_file raises
            raise DataError(
                f"{source.audio_path} is on this machine and not on a worker's node: share its folder among the nodes"
            )
