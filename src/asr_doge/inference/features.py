"""Run the frozen encoder over a corpus once and store its output in the feature cache.

Promises: the cache holds what the model's `encode` gives for the same audio, so training from it gives the same loss
(to the rounding of the storage type); only utterances that are new or whose audio changed are encoded; the same corpus
gives the same bytes on the same machine in batches of the same size, with one process or several, interrupted or not
(`compile` rounds otherwise); clips that cannot be read are named, counted and left out. No language model is loaded.
It does not know the format of the cache's files (see `asr_doge.data.feature_folder`), nor how a batch comes to be
encoded (see `asr_doge.inference.feature_encoding`).
"""

import os
import sys
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_doge.data.batching import cut_by_length
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_folder import shard_count
from asr_doge.data.feature_shards import Storage, bytes_per_second
from asr_doge.data.fingerprints import KnownCopies
from asr_doge.data.manifest import Utterance, manifests_in, read_manifest
from asr_doge.data.sharding import Shard, parse_shard
from asr_doge.errors import ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.feature_computation import (
    SMALLEST_BATCH_SECONDS,
    batch_seconds_that_fit,
    computing_in,
    weights_dtype,
)
from asr_doge.inference.feature_encoding import FeaturesRun, FeaturesWork, ReadClip
from asr_doge.models import LoadedEncoder, find_device
from asr_doge.models.compiling import check_encoder_compilable, compile_encoder
from asr_doge.models.ctc_head_checkpoints import find_speech_encoder
from asr_doge.models.encoders import encoder_family
from asr_doge.models.encoders.loading import encoder_fingerprint, feature_source, load_encoder

_LAST_WINDOW_SECONDS = 0.2
"""Audio beyond a clip's end that the encoder's last window of the clip covers, on average and rounded up."""
_AUGMENTED_MANIFEST = "train_manifest.json"


@dataclass(frozen=True)
class FeaturesReport:
    """Result of the `features` command.

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


def compute_features(config: FeaturesConfig, read: ReadClip | None = None) -> FeaturesReport:
    """Run the `features` command over every manifest in `data_dir`.

    Args:
        config: of the command.
        read: see `FeaturesRun`.

    Raises:
        DataError: no manifests, one id for two recordings, no readable utterance, features of another encoder in the
            folder, or too little space on the disk.
        CheckpointError: the encoder cannot be loaded.
        ConfigError: a flag's value is invalid.
    """
    part = _check_flags(config)
    data_dir = Path(config.data_dir)
    utterances, augmented = _read_manifests(config.data_dir)
    device = find_device(config.device)
    dtype = weights_dtype(config.compute_dtype, device)
    found = find_speech_encoder(config.speech_encoder, config.encoder_window)
    reference, encoder_config = found.reference, found.config  # not the head, which reads what is stored here
    if config.compile:
        check_encoder_compilable(encoder_config)
    encoder = load_encoder(reference, encoder_config, dtype).to(device)
    speech_encoder = LoadedEncoder(encoder, encoder_family(encoder_config).feature_extractor(encoder_config))
    top_k = config.ctc_top_k if encoder.has_ctc else 0
    storage = Storage(config.dtype, top_k, config.augment_copies, config.compute_dtype)
    copies = dict.fromkeys(augmented, 1 + config.augment_copies)
    seconds = sum(utterance.duration * copies.get(utterance.id, 1) for utterance in utterances)
    folder = config.output_dir or str(data_dir / "features")
    source = feature_source(
        encoder_fingerprint(reference, encoder_config), encoder_config, speech_encoder.feature_extractor
    )
    with (
        computing_in(config.compute_dtype),
        FeatureCacheWriter(
            folder,
            source,
            storage,
            num_shards=shard_count(seconds, 60 * config.shard_minutes),
            part=part,
            overwrite=config.overwrite,
        ) as writer,
    ):
        stored = _stored(writer, utterances, copies, config.verify)
        is_complete = all(one.id in stored or writer.shard_of(one.id) is None for one in utterances)
        if config.compile and not is_complete:
            compile_encoder(speech_encoder)
        batch_seconds = config.batch_seconds or (
            SMALLEST_BATCH_SECONDS if is_complete else batch_seconds_that_fit(speech_encoder)
        )
        work = _plan(writer, utterances, copies, batch_seconds, stored)
        _require_space(
            writer,
            work,
            copies,
            bytes_per_second(storage, encoder.hidden_size, encoder.frame_rate_hz, encoder.ctc_frame_rate_hz),
        )
        run = FeaturesRun(writer, speech_encoder, copies, config.num_workers, read)
        run.do(work)
    return FeaturesReport(folder, run.encoded, work.kept, list(run.failed.values()))


def _check_flags(config: FeaturesConfig) -> Shard:
    """Refuse invalid numbers; returns the part that `--shard` names."""
    for name in ("batch_seconds", "shard_minutes", "num_workers"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value} cannot be used: it must be more than 0")
    for name in ("augment_copies", "ctc_top_k"):
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must not be negative")
    return parse_shard(config.shard)


def _read_manifests(data_dir: str) -> tuple[list[Utterance], set[str]]:
    """All utterances by id, and the ids of those that get augmented copies."""
    by_name = {manifest.name: read_manifest(manifest) for manifest in manifests_in(data_dir)}
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


def _plan(
    writer: FeatureCacheWriter,
    utterances: Sequence[Utterance],
    copies: dict[str, int],
    batch_seconds: float,
    stored: Container[str],
) -> FeaturesWork:
    """Batches of similar length within each file.

    All utterances are divided into batches, and only then are those already stored left out. So an interrupted run
    continues with the same batches and gives the same bytes.
    """
    members: dict[int, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        number = writer.shard_of(utterance.id)
        if number is not None:
            members[number].append(utterance)
    work = FeaturesWork()
    for number in sorted(members):
        by_copies: dict[int, list[Utterance]] = defaultdict(list)
        for utterance in sorted(members[number], key=lambda utterance: (utterance.duration, utterance.id)):
            by_copies[copies.get(utterance.id, 1)].append(utterance)
        batches = []
        for several, alike in sorted(by_copies.items()):
            start = 0
            for end in cut_by_length([several * utterance.duration for utterance in alike], batch_seconds):
                wanted = [utterance for utterance in alike[start:end] if utterance.id not in stored]
                work.kept += end - start - len(wanted)
                batches += [wanted] if wanted else []
                start = end
        if batches:
            work.shards[number] = batches
    return work


def _stored(
    writer: FeatureCacheWriter, utterances: Sequence[Utterance], copies: dict[str, int], verify: bool
) -> set[str]:
    """Ids of utterances whose features are stored. Features stay valid if the recording is gone, as in training."""
    stored = {utterance.id for utterance in utterances if writer.holds(utterance.id, None, copies.get(utterance.id, 1))}
    here = [utterance for utterance in utterances if utterance.id in stored and os.path.exists(utterance.audio_path)]  # noqa: PTH110 - False where Path.exists raises
    stamps = [(utterance.audio_path, writer.stamp(utterance.id) or "") for utterance in here]
    unchanged = KnownCopies(writer.store).unchanged(stamps, verify=verify)
    return stored - {utterance.id for utterance, is_same in zip(here, unchanged, strict=True) if not is_same}


def _require_space(writer: FeatureCacheWriter, work: FeaturesWork, copies: dict[str, int], per_second: float) -> None:
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
