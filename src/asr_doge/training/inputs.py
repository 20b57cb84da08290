"""Open the data of a run, for training and evaluation, from the cache or from recordings, and divide it into batches.

Promises: utterances that cannot be read are left out and named, on every process alike; all evaluations use the same
utterances. It does not know how an example is made (see `asr_doge.training.datasets`).
"""

import sys
from collections.abc import Sequence

from asr_doge.data.batching import CountBatches, LengthBatches, ProcessBatches, SharedBatches, SimilarLengthBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance
from asr_doge.data.sharding import Shard
from asr_doge.errors import AudioError, DataError
from asr_doge.models import LoadedModel
from asr_doge.models.encoders.loading import feature_source
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.datasets import CachedSpeechDataset, SpeechDataset, UtteranceDataset
from asr_doge.training.processes import print_once, process_count, process_rank

REMOTE_READS = 16
"""Utterances that are fetched from a cache elsewhere at the same time."""


def open_dataset(
    config: TrainConfig, utterances: Sequence[Utterance], loaded: LoadedModel, *, training: bool = False
) -> UtteranceDataset:
    """Examples from the feature cache if there is one, else from the audio; only training examples are augmented."""
    if not config.features_dir:
        return SpeechDataset(utterances, loaded.processor, training and config.augment, config.seed)
    source = feature_source(
        loaded.model.config.speech_encoder_fingerprint,
        loaded.model.config.encoder_config,
        loaded.processor.feature_extractor,
    )
    try:
        cache = FeatureCache.open(config.features_dir, expected_source=source)
        readable = [utterance for utterance in utterances if utterance.id not in cache.unreadable]
        cache.require_fresh(readable)
    except DataError as error:
        raise DataError(f'{error}; or give --features_dir "" to compute features at every step') from None
    if not readable:
        raise DataError(f"none of {len(utterances)} utterances could be read when {config.features_dir} was made")
    if len(readable) < len(utterances):
        print_once(f"left out: {len(utterances) - len(readable)} of {len(utterances)} utterances that cannot be read")
    reads_at_once = REMOTE_READS if "://" in config.features_dir else 1
    if not training:
        return CachedSpeechDataset(readable, loaded.processor, cache, reads_at_once=reads_at_once)
    return CachedSpeechDataset(
        readable,
        loaded.processor,
        cache,
        config.seed,
        use_copies=True,
        frame_dropping=config.frame_dropping,
        embedding_noise=config.embedding_noise,
        reads_at_once=reads_at_once,
    )


def leave_out_unreadable(examples: UtteranceDataset) -> tuple[UtteranceDataset, dict[str, str]]:
    """The readable utterances, so that all evaluations use the same; and the reason for each other one, by id.

    Raises:
        DataError: nothing remains.
    """
    if not isinstance(examples, SpeechDataset):
        return examples, {}
    unreadable = {}
    for index, utterance in enumerate(examples.utterances):
        try:
            examples[index]
        except AudioError as error:
            unreadable[utterance.id] = str(error)
            print_once(f"left out: {error}", sys.stderr)
    readable = [utterance for utterance in examples.utterances if utterance.id not in unreadable]
    if not readable:
        raise DataError(f"none of the {len(examples)} dev utterances can be read; {next(iter(unreadable.values()))}")
    kept = SpeechDataset(readable, examples.processor)
    kept.ctc_ids = examples.ctc_ids
    return kept, unreadable


def training_batches(config: TrainConfig, utterances: Sequence[Utterance]) -> ProcessBatches:
    """This process's batches, by count or by seconds; in the latter case, prints their size and padding."""
    shard = Shard(process_rank() + 1, process_count())
    durations = [utterance.duration for utterance in utterances]
    if config.batch_seconds is None:
        composed = SimilarLengthBatches if config.like_length else CountBatches
        batches = composed(durations, config.batch_size, config.seed)
        return ProcessBatches(batches, shard, config.gradient_accumulation_steps)
    by_length = LengthBatches(durations, config.batch_seconds, config.seed)
    share = 100 * by_length.padding_share()
    print_once(
        f"batches: {len(by_length):,} an epoch of at most {config.batch_seconds:g} s, {share:.1f} % of it padding"
    )
    return ProcessBatches(by_length, shard)


def evaluation_batches(config: TrainConfig, utterances: Sequence[Utterance]) -> SharedBatches:
    """The batches of this process's share of an evaluation, limited like those of training."""
    shard = Shard(process_rank() + 1, process_count())
    if config.batch_seconds is None:
        return SharedBatches([1.0] * len(utterances), utterances_at_once(config), shard)
    return SharedBatches([utterance.duration for utterance in utterances], config.batch_seconds, shard)


def shortest_first(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Utterances sorted by length, so that evaluation pads little."""
    return sorted(utterances, key=lambda utterance: utterance.duration)


def utterances_at_once(config: TrainConfig) -> int:
    """Utterances that a process reads at once."""
    return max(1, config.batch_size // (process_count() * config.gradient_accumulation_steps))
