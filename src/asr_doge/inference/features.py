"""Run the frozen encoder over a corpus once and store its output in the feature cache.

Promises: the cache holds what the model's `encode` gives for the same audio, so training from it gives the same loss
(to the rounding of the storage type); only utterances that are new or whose audio changed are encoded; the same corpus
gives the same bytes on the same machine, with one process or several, interrupted or not; clips that cannot be read are
named, counted and left out. No language model is loaded, and at most two batches of audio are in memory.
It does not know the format of the cache's files (see `asr_doge.data.feature_folder`).
"""

import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asr_doge.audio.augmentation import Augmentation
from asr_doge.audio.reading import read_clip
from asr_doge.data.batching import cut_by_length
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_folder import shard_count
from asr_doge.data.feature_shards import Features, Storage, bytes_per_second
from asr_doge.data.fingerprints import KnownCopies, fingerprint
from asr_doge.data.manifest import Utterance, id_digest, read_manifest
from asr_doge.data.sharding import Shard, parse_shard
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.models import LoadedEncoder, find_device
from asr_doge.models.ctc_head_checkpoints import find_speech_encoder
from asr_doge.models.encoders import encoder_family
from asr_doge.models.encoders.loading import encoder_fingerprint, feature_source, load_encoder
from asr_doge.progress import progress_bar

_LAST_WINDOW_SECONDS = 0.2
"""Audio beyond a clip's end that the encoder's last window of the clip covers, on average and rounded up."""
_AUGMENTED_MANIFEST = "train_manifest.json"


@dataclass(frozen=True)
class FeaturesReport:
    """Result of the `features` verb.

    Attributes:
        folder: the cache, a path or URL.
        encoded: utterances encoded in this run.
        kept: utterances that were in the cache already.
        failed: one line for each utterance that could not be read.
    """

    folder: str
    encoded: int
    kept: int
    failed: list[str]


def compute_features(config: FeaturesConfig) -> FeaturesReport:
    """Run the `features` verb over every manifest in `data_dir`.

    Raises:
        DataError: no manifests, one id for two recordings, no readable utterance, features of another encoder in the
            folder, or too little space on the disk.
        CheckpointError: the encoder cannot be loaded.
        ConfigError: a flag's value is invalid.
    """
    part = _check_flags(config)
    data_dir = Path(config.data_dir)
    utterances, augmented = _read_manifests(data_dir)
    found = find_speech_encoder(config.speech_encoder, config.encoder_window)
    reference, encoder_config = found.reference, found.config  # not the head, which reads what is stored here
    encoder = load_encoder(reference, encoder_config).to(find_device(config.device))
    speech_encoder = LoadedEncoder(encoder, encoder_family(encoder_config).feature_extractor(encoder_config))
    storage = Storage(config.dtype, config.ctc_top_k if encoder.has_ctc else 0, config.augment_copies)
    copies = dict.fromkeys(augmented, 1 + config.augment_copies)
    seconds = sum(utterance.duration * copies.get(utterance.id, 1) for utterance in utterances)
    folder = config.output_dir or str(data_dir / "features")
    source = feature_source(
        encoder_fingerprint(reference, encoder_config), encoder_config, speech_encoder.feature_extractor
    )
    with FeatureCacheWriter(
        folder,
        source,
        storage,
        num_shards=shard_count(seconds, 60 * config.shard_minutes),
        part=part,
        overwrite=config.overwrite,
    ) as writer:
        queued = _held(writer, utterances, copies, config.verify)
        work = _plan(writer, utterances, copies, config.batch_seconds, queued)
        _require_space(
            writer,
            work,
            copies,
            bytes_per_second(storage, encoder.hidden_size, encoder.frame_rate_hz, encoder.ctc_frame_rate_hz),
        )
        run = _Run(writer, speech_encoder, copies, config.num_workers)
        run.do(work)
    return FeaturesReport(folder, run.encoded, work.kept, list(run.failed.values()))


def _check_flags(config: FeaturesConfig) -> Shard:
    """Refuse invalid numbers; returns the part that `--shard` names."""
    for name in ("batch_seconds", "shard_minutes", "num_workers"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must be more than 0")
    for name in ("augment_copies", "ctc_top_k"):
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must not be negative")
    return parse_shard(config.shard)


def _read_manifests(data_dir: Path) -> tuple[list[Utterance], set[str]]:
    """All utterances by id, and the ids of those that get augmented copies."""
    manifests = sorted(data_dir.glob("*_manifest.json"))
    if not manifests:
        raise DataError(f"no *_manifest.json in {data_dir}; run `asr-doge process` first")
    by_name = {manifest.name: read_manifest(manifest) for manifest in manifests}
    utterances = _distinct(utterance for found in by_name.values() for utterance in found)
    augmented = {utterance.id for utterance in by_name.get(_AUGMENTED_MANIFEST, ())}
    return sorted(utterances, key=lambda utterance: utterance.id), augmented


def _distinct(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Each recording once, though several manifests may list it."""
    by_id: dict[str, Utterance] = {}
    for utterance in utterances:
        known = by_id.setdefault(utterance.id, utterance)
        if known.audio_path != utterance.audio_path:
            raise DataError(
                f"the id {utterance.id!r} is that of {known.audio_path} and of {utterance.audio_path}; the feature"
                ' cache needs an "id" of its own for each recording'
            )
    return list(by_id.values())


@dataclass
class _Work:
    """What is left to encode: batches of utterances for each file of the cache."""

    shards: dict[int, list[list[Utterance]]] = field(default_factory=dict)
    kept: int = 0

    def utterances(self) -> Iterator[Utterance]:
        return (utterance for batches in self.shards.values() for batch in batches for utterance in batch)


def _plan(
    writer: FeatureCacheWriter,
    utterances: Sequence[Utterance],
    copies: dict[str, int],
    batch_seconds: float,
    queued: Container[str],
) -> _Work:
    """Batches of similar length within each file.

    All utterances are divided into batches, and only then are those already stored left out. So an interrupted run
    continues with the same batches and gives the same bytes.
    """
    members: dict[int, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        number = writer.shard_of(utterance.id)
        if number is not None:
            members[number].append(utterance)
    work = _Work()
    for number in sorted(members):
        by_copies: dict[int, list[Utterance]] = defaultdict(list)
        for utterance in sorted(members[number], key=lambda utterance: (utterance.duration, utterance.id)):
            by_copies[copies.get(utterance.id, 1)].append(utterance)
        batches = []
        for several, alike in sorted(by_copies.items()):
            start = 0
            for end in cut_by_length([several * utterance.duration for utterance in alike], batch_seconds):
                wanted = [utterance for utterance in alike[start:end] if utterance.id not in queued]
                work.kept += end - start - len(wanted)
                batches += [wanted] if wanted else []
                start = end
        if batches:
            work.shards[number] = batches
    return work


def _held(
    writer: FeatureCacheWriter, utterances: Sequence[Utterance], copies: dict[str, int], verify: bool
) -> set[str]:
    """Ids of utterances whose features are stored. Features stay valid if the recording is gone, as in training."""
    queued = {utterance.id for utterance in utterances if writer.holds(utterance.id, None, copies.get(utterance.id, 1))}
    here = [utterance for utterance in utterances if utterance.id in queued and _exists(utterance.audio_path)]
    stamps = [(utterance.audio_path, writer.stamp(utterance.id) or "") for utterance in here]
    unchanged = KnownCopies(writer.store).unchanged(stamps, verify=verify)
    return queued - {utterance.id for utterance, is_same in zip(here, unchanged, strict=True) if not is_same}


def _exists(path: Path) -> bool:
    """False too where `Path.exists` raises, as for a name that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def _require_space(writer: FeatureCacheWriter, work: _Work, copies: dict[str, int], per_second: float) -> None:
    """Log how much disk space the work needs, and refuse to start if there is less.

    Raises:
        DataError: there is too little space.
    """
    counts = [(utterance.duration, copies.get(utterance.id, 1)) for utterance in work.utterances()]
    seconds = sum(duration * count for duration, count in counts)
    needed = per_second * sum((duration + _LAST_WINDOW_SECONDS) * count for duration, count in counts)
    free = writer.store.free_bytes()
    available = f", of {_readable(free)} that are free" if free is not None else ""
    print(
        f"features: {len(counts):,} utterances to encode, {seconds / 3600:.2f} h, into {len(work.shards)} of"
        f" {writer.num_shards} files, about {_readable(needed)}{available}: {writer.store}",
        file=sys.stderr,
    )
    if free is not None and needed > free:
        raise DataError(
            f"{writer.store} has {_readable(free)} free and the features need about {_readable(needed)}: make room,"
            " choose another --output_dir, or a smaller --dtype (bf16, int8)"
        )


def _readable(size: float) -> str:
    """A number of bytes in a suitable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@dataclass(frozen=True)
class _Clip:
    """A recording that was read, with its augmented copies, and its `fingerprint` from before it was read."""

    id: str
    stamp: str
    waveforms: list[NDArray[np.float32]]


class _Run:
    """Reads ahead, encodes, and stores.

    Attributes:
        encoded: utterances stored so far.
        failed: the reason for each utterance that was not stored, by id.
    """

    def __init__(
        self, writer: FeatureCacheWriter, speech_encoder: LoadedEncoder, copies: dict[str, int], threads: int
    ) -> None:
        self.encoded = 0
        self.failed: dict[str, str] = {}
        self._writer = writer
        self._speech_encoder = speech_encoder
        self._copies = copies
        self._threads = threads

    def do(self, work: _Work) -> None:
        """Fill the files one by one.

        Raises:
            DataError: not one utterance can be read, or a file cannot be written.
        """
        without_any: list[tuple[int, list[Utterance]]] = []
        queue = [(number, batch) for number, batches in work.shards.items() for batch in batches]
        with (
            ThreadPoolExecutor(self._threads) as pool,
            progress_bar(total=sum(len(batch) for _, batch in queue), desc="features", unit="utt") as bar,
        ):
            read = self._read_ahead(pool, [batch for _, batch in queue])
            for number, batches in work.shards.items():
                with self._writer.shard(number) as shard:
                    for batch in batches:
                        clips = next(read)
                        encoded = list(self._encode(clips))  # a batch is stored whole or not, lest its rest be another
                        for clip, copies in zip(clips, encoded, strict=True):
                            shard.add(clip.id, clip.stamp, copies)
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

    def _read_ahead(self, pool: ThreadPoolExecutor, batches: Sequence[list[Utterance]]) -> Iterator[list[_Clip]]:
        """Clips of each batch; the next batch is read while one is encoded. Failures are added to `failed`."""
        ahead: deque[list[tuple[Utterance, Future[_Clip]]]] = deque()
        for batch in [*batches, None]:
            if batch is not None:
                ahead.append([(utterance, pool.submit(self._read, utterance)) for utterance in batch])
            while len(ahead) > (1 if batch is not None else 0):
                clips = []
                for utterance, future in ahead.popleft():
                    try:
                        clips.append(future.result())
                    except (AudioError, DataError) as error:
                        self.failed[utterance.id] = str(error)
                yield clips

    def _read(self, utterance: Utterance) -> _Clip:
        """Read a recording that the encoder can read whole.

        Raises:
            AudioError, DataError: it cannot be read, or is too short or too long.
        """
        path, rate = utterance.audio_path, self._speech_encoder.sampling_rate
        # Taken before reading: if the recording changes meanwhile, its features count as outdated and are redone.
        stamp = fingerprint(path)
        longest = self._speech_encoder.max_samples
        waveform = read_clip(path, rate, longest)
        copies = range(1, self._copies.get(utterance.id, 1))
        return _Clip(
            utterance.id, stamp, [waveform, *(augmented_copy(waveform, rate, utterance.id, n, longest) for n in copies)]
        )

    @torch.inference_mode()
    def _encode(self, clips: Sequence[_Clip]) -> Iterator[list[Features]]:
        """Features of each clip and its copies."""
        if not clips:
            return
        top_k = self._writer.storage.ctc_top_k
        waveforms = [waveform for clip in clips for waveform in clip.waveforms]
        output = self._speech_encoder.encode(waveforms, return_ctc_logits=top_k > 0)
        speech = output.speech_embeddings.cpu()
        speech_lengths = output.speech_lengths.tolist()
        features = [Features(rows[:length]) for rows, length in zip(speech, speech_lengths, strict=True)]
        if output.ctc_logits is not None and output.ctc_lengths is not None:
            best = output.ctc_logits.log_softmax(dim=-1).topk(min(top_k, output.ctc_logits.shape[-1]), dim=-1)
            features = [
                Features(one.embeddings, ids[:length], log_probs[:length])
                for one, ids, log_probs, length in zip(
                    features, best.indices.cpu(), best.values.cpu(), output.ctc_lengths.tolist(), strict=True
                )
            ]
        each = iter(features)
        for clip in clips:
            yield [next(each) for _ in clip.waveforms]


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
