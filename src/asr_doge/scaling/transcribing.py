"""The worker that transcribes: a shard's recordings through the functions that transcribe files.

Promises: texts are those of `asr_doge.inference.transcription`, recordings batched with their neighbours in the shard.
It knows no engine, and neither commits nor attempts (see `asr_doge.scaling.shard_worker`).
"""

from collections.abc import Iterator, Sequence

from asr_doge.inference.configured import load_configured
from asr_doge.inference.output import Result
from asr_doge.inference.sources import BlockSource
from asr_doge.inference.transcription import SourceWithOptions, Transcriber
from asr_doge.scaling.configuration import TranscribeJobConfig
from asr_doge.scaling.items import Item
from asr_doge.scaling.shard_worker import ShardWorker
from asr_doge.scaling.shards import JobFolder


class TranscribeWorker(ShardWorker):
    """Transcribes shards with a model that it loads once; arguments as of `ShardWorker`."""

    def __init__(self, config: TranscribeJobConfig, folder: JobFolder) -> None:
        super().__init__(config, folder)
        self._transcriber: Transcriber | None = None

    def start(self) -> str | None:
        """Load the model and start the decoders; returns a note for the user, if any.

        Raises:
            CheckpointError, ConfigError: as in `load`.
        """
        self._transcriber = load_configured(self.config)
        return super().start()

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """The result of each recording, in order."""
        assert self._transcriber is not None, "start the worker first"
        readings = self.read_ahead(items)
        sources = (SourceWithOptions(BlockSource(reading.blocks, reading.name)) for reading in readings)
        return self._transcriber.transcribe_each(sources)
