"""Read recordings, encode them and store what the encoder hears: the work of the `features` command.

Promises: a batch is stored whole or not at all, in the order of the plan; recordings that cannot be read are named and
left out. Reading, log-mel features and the encoder each have threads of their own, one batch ahead of what follows, so
four batches at most are in memory. A batch that does not fit into the device's memory is encoded in halves.
It does not know which utterances are left to encode (see `asr_doge.inference.features`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.audio.augmentation import Augmentation
from asr_doge.audio.reading import read_clip
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_shards import Features
from asr_doge.data.fingerprints import fingerprint
from asr_doge.data.manifest import Utterance, id_digest
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.models import LoadedEncoder
from asr_doge.models.device_memory import is_out_of_memory
from asr_doge.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class FeaturesWork:
    """The remaining work: batches of utterances for each file of the cache."""

    shards: dict[int, list[list[Utterance]]] = field(default_factory=dict)
    kept: int = 0

    def utterances(self) -> Iterator[Utterance]:
        """All of them."""
        return (utterance for batches in self.shards.values() for batch in batches for utterance in batch)


@dataclass(frozen=True)
class _Clip:
    """A recording that was read, with its augmented copies, and its `fingerprint` from before it was read."""

    id: str
    stamp: str
    waveforms: list[NDArray[np.float32]]


@dataclass(frozen=True)
class _Batch:
    """Id, stamp and number of waveforms of each clip; input features and mask, a row for each waveform."""

    clips: list[tuple[str, str, int]]
    input_features: Tensor
    mask: Tensor


ReadClip = Callable[[Path, int, int | None], NDArray[np.float32]]
"""`read_clip`, or what gives the same in another way."""

_EncodedClip = tuple[str, str, list[Features]]
"""Id, stamp, and features of the recording and its copies."""


class FeaturesRun:
    """Reads ahead, encodes, and stores.

    Args:
        writer: of the cache.
        speech_encoder: on its device.
        copies: waveforms of an utterance, itself included, where there are several; by id.
        threads: that read audio.
        read: reads a recording; default, `read_clip`.

    Attributes:
        encoded: utterances stored so far.
        failed: the reason for each utterance that was not stored, by id.
    """

    def __init__(
        self,
        writer: FeatureCacheWriter,
        speech_encoder: LoadedEncoder,
        copies: dict[str, int],
        threads: int,
        read: ReadClip | None = None,
    ) -> None:
        self.encoded = 0
        self.failed: dict[str, str] = {}
        self._writer = writer
        self._speech_encoder = speech_encoder
        self._copies = copies
        self._threads = threads
        self._read_clip = read or read_clip

    def do(self, work: FeaturesWork) -> None:
        """Fill the files one by one.

        Raises:
            DataError: not one utterance can be read, or a file cannot be written.
            ConfigError: not even one clip fits into the device's memory.
        """
        without_any: list[tuple[int, list[Utterance]]] = []
        queue = [batch for batches in work.shards.values() for batch in batches]
        with ExitStack() as stack:
            encoded = self._encoded_ahead(queue, stack)
            bar = stack.enter_context(progress_bar(total=sum(map(len, queue)), desc="features", unit="utt"))
            for number, batches in work.shards.items():
                with self._writer.shard(number) as shard:
                    for batch in batches:
                        clips = next(encoded)
                        for clip in clips:
                            shard.add(*clip)
                        self.encoded += len(clips)
                        bar.update(len(batch))
                    members = [utterance for batch in batches for utterance in batch]
                    if self.encoded or work.kept:
                        self._mark(shard.mark_unreadable, members)
                    else:
                        without_any.append((number, members))
        if self.failed and not self.encoded and not work.kept:  # the fault of a folder or a disk, not of each recording
            raise DataError(
                f"none of the {len(self.failed)} utterances can be read; the first: {next(iter(self.failed.values()))}"
            )
        for number, members in without_any:
            with self._writer.shard(number) as shard:
                self._mark(shard.mark_unreadable, members)

    def _mark(self, mark: Callable[[str, str], None], members: Sequence[Utterance]) -> None:
        """Record in a file which of its utterances failed, unless the file says so already."""
        for utterance in members:
            reason = self.failed.get(utterance.id)
            if reason is not None and self._writer.unreadable(utterance.id) != reason:
                mark(utterance.id, reason)

    def _encoded_ahead(self, batches: Sequence[list[Utterance]], stack: ExitStack) -> Iterator[list[_EncodedClip]]:
        """Features of each batch's clips: while one is stored, the next is encoded and the one after it read."""
        reading, preparing, encoding = pools = [ThreadPoolExecutor(threads) for threads in (self._threads, 1, 1)]
        for pool in pools:  # after an error, what is at work ends, and nothing is begun
            stack.callback(pool.shutdown, cancel_futures=True)
        read = self._read_ahead(reading, batches)
        return _one_ahead(encoding, self._encode, _one_ahead(preparing, self._prepare, read))

    def _read_ahead(self, pool: Executor, batches: Sequence[list[Utterance]]) -> Iterator[list[_Clip]]:
        """Clips of each batch; the next batch is read while one is prepared. Failures are added to `failed`."""

        def clips(reads: Sequence[tuple[Utterance, Future[_Clip]]]) -> list[_Clip]:
            read = []
            for utterance, future in reads:
                try:
                    read.append(future.result())
                except (AudioError, DataError) as error:
                    self.failed[utterance.id] = str(error)
            return read

        ahead: deque[list[tuple[Utterance, Future[_Clip]]]] = deque()
        for batch in batches:
            ahead.append([(utterance, pool.submit(self._read, utterance)) for utterance in batch])
            if len(ahead) > 1:
                yield clips(ahead.popleft())
        while ahead:
            yield clips(ahead.popleft())

    def _read(self, utterance: Utterance) -> _Clip:
        """Read a recording that the encoder can read whole.

        Raises:
            AudioError, DataError: it cannot be read, or is too short or too long.
        """
        path, rate = utterance.audio_path, self._speech_encoder.sampling_rate
        # Taken before reading: if the recording changes meanwhile, its features count as outdated and are redone.
        stamp = fingerprint(path)
        longest = self._speech_encoder.max_samples
        waveform = self._read_clip(path, rate, longest)
        copies = range(1, self._copies.get(utterance.id, 1))
        return _Clip(
            utterance.id, stamp, [waveform, *(augmented_copy(waveform, rate, utterance.id, n, longest) for n in copies)]
        )

    def _prepare(self, clips: list[_Clip]) -> _Batch:
        """The encoder's input features; the waveforms are not needed any more."""
        waveforms = [waveform for clip in clips for waveform in clip.waveforms]
        inputs = self._speech_encoder.input_features(waveforms) if waveforms else (torch.empty(0), torch.empty(0))
        return _Batch([(clip.id, clip.stamp, len(clip.waveforms)) for clip in clips], *inputs)

    def _encode(self, batch: _Batch) -> list[_EncodedClip]:
        """Features of each clip and its copies."""
        rows = iter(self._encode_rows(batch.input_features, batch.mask))
        return [(id_, stamp, [next(rows) for _ in range(count)]) for id_, stamp, count in batch.clips]

    def _encode_rows(self, input_features: Tensor, mask: Tensor) -> list[Features]:
        """Features of each row of a batch.

        Raises:
            ConfigError: not even one clip fits into the device's memory.
        """
        if not len(mask):
            return []
        try:
            return self._encode_at_once(input_features, mask)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(mask) == 1:
                raise ConfigError(
                    f"a clip does not fit into the memory of {self._speech_encoder.device}: give --compute_dtype bf16,"
                    " or --device cpu"
                ) from error
        half = len(mask) // 2
        parts = ((input_features[:half], mask[:half]), (input_features[half:], mask[half:]))
        return [features for part in parts for features in self._encode_rows(*part)]

    @torch.inference_mode()
    def _encode_at_once(self, input_features: Tensor, mask: Tensor) -> list[Features]:
        top_k = self._writer.storage.ctc_top_k
        output = self._speech_encoder.encode_features(input_features, mask, return_ctc_logits=top_k > 0)
        speech = output.speech_embeddings.cpu()
        features = [
            Features(rows[:length]) for rows, length in zip(speech, output.speech_lengths.tolist(), strict=True)
        ]
        if output.ctc_logits is None or output.ctc_lengths is None:
            return features
        log_probs = output.ctc_logits.float().log_softmax(dim=-1)
        best = log_probs.topk(min(top_k, log_probs.shape[-1]), dim=-1)
        return [
            Features(one.embeddings, ids[:length], values[:length])
            for one, ids, values, length in zip(
                features, best.indices.cpu(), best.values.cpu(), output.ctc_lengths.tolist(), strict=True
            )
        ]


def _one_ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items, in order; the pool computes the next result while the consumer has one."""
    ahead: deque[Future[Result]] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) > 1:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def augmented_copy(
    waveform: NDArray[np.float32], sampling_rate: int, utterance_id: str, number: int, longest: int | None = None
) -> NDArray[np.float32]:
    """The `number`-th (from 1) augmented copy of a recording; always the same for the same arguments.

    Args:
        waveform: `[samples]`.
        sampling_rate: of `waveform`, in Hz.
        utterance_id: determines the variation, together with `number`.
        number: of the copy.
        longest: see `Augmentation`.
    """
    rng = np.random.default_rng([number, *id_digest(utterance_id)])
    return Augmentation()(waveform, sampling_rate, rng, longest)
