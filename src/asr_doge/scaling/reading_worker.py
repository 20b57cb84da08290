"""The base of workers that read recordings: it starts and ends their decoders.

It does not know what becomes of the samples.
"""

from collections.abc import Iterator, Sequence

from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item
from asr_doge.scaling.opening import ItemReader, Reading, item_reader
from asr_doge.scaling.shard_worker import ShardWorker
from asr_doge.scaling.shards import JobFolder


class ReadingWorker(ShardWorker):
    """Reads recordings with decoders in processes of their own.

    Args:
        config: of the verb.
        folder: of the job.
    """

    def __init__(self, config: TranscribeJobConfig, folder: JobFolder) -> None:
        super().__init__(folder, config.model, config.max_attempts)
        self.config = config
        self._reader: ItemReader | None = None

    def start(self) -> None:
        """Start the decoders."""
        self._reader = item_reader(self.config)

    def close(self) -> None:
        """End the decoders."""
        if self._reader is not None:
            self._reader.close()

    def read_ahead(self, items: Sequence[Item]) -> Iterator[Reading]:
        """Each item's recording, in order, while those after it are decoded."""
        assert self._reader is not None, "start the worker first"
        return self._reader.read_ahead(items)
