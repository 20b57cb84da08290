"""The frozen encoder over a corpus, once, into the feature cache.

Promises: what the cache holds is what the model's `encode` gives for the same audio, so training from it gives the
same loss; only utterances that are new or whose audio changed are encoded; clips that cannot be read are named, counted
and left out. No language model is loaded.
It does not know the cache's files (see `asr_doge.data.feature_cache`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asr_doge.audio.reading import read_audio
from asr_doge.data.feature_cache import FeatureCacheWriter, audio_stamp
from asr_doge.data.manifest import Utterance, read_manifest
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.transcription import MINIMUM_SECONDS
from asr_doge.models import find_device
from asr_doge.models.checkpoints import find_model, load_model_config
from asr_doge.models.encoders import SpeechEncoder, encoder_family
from asr_doge.models.encoders.loading import encoder_fingerprint, feature_source, load_encoder

SORTED_GROUP = 64
"""Batches among whose clips neighbours of like length are looked for."""


@dataclass(frozen=True)
class FeaturesReport:
    """What the `features` verb did.

    Attributes:
        folder: the cache.
        encoded: utterances encoded in this run.
        kept: utterances that were there already.
        failed: one line for each utterance that could not be read.
    """

    folder: Path
    encoded: int
    kept: int
    failed: list[str]


def compute_features(config: FeaturesConfig) -> FeaturesReport:
    """Run the `features` verb over every manifest in `data_dir`.

    Raises:
        DataError: no manifests, one id for two recordings, not one readable utterance, or features of another encoder
            in the way.
        CheckpointError: the encoder cannot be loaded.
        ConfigError: a batch size below 1.
    """
    if config.batch_size < 1:
        raise ConfigError("--batch_size must be at least 1")
    data_dir = Path(config.data_dir)
    manifests = sorted(data_dir.glob("*_manifest.json"))
    if not manifests:
        raise DataError(f"no *_manifest.json in {data_dir}; run `asr-doge process` first")
    utterances = _distinct(utterance for manifest in manifests for utterance in read_manifest(manifest))
    reference = find_model(config.speech_encoder)
    encoder_config = load_model_config(reference)
    encoder = load_encoder(reference, encoder_config).to(find_device(config.device))
    extractor = encoder_family(encoder_config).feature_extractor(encoder_config)

    folder = Path(config.output_dir) if config.output_dir else data_dir / "features"
    failed: dict[str, str] = {}
    encoded = 0
    source = feature_source(encoder_fingerprint(reference, encoder_config), encoder_config, extractor)
    with FeatureCacheWriter(folder, source, overwrite=config.overwrite) as writer:
        wanted = []
        for utterance in utterances:
            if _is_held(writer, utterance):
                writer.mark_readable(utterance.id)
            else:
                wanted.append(utterance)
        with tqdm(total=len(wanted), desc="features", unit="utt", dynamic_ncols=True) as progress:
            for batch in _batches(wanted, config.batch_size):
                clips = _read(batch, extractor, failed)
                for clip, embeddings in zip(clips, _encode(encoder, extractor, clips), strict=True):
                    writer.add(clip.id, clip.stamp, embeddings)
                    encoded += 1
                progress.update(len(batch))
        if failed and len(failed) == len(utterances):  # the fault of a folder or a disk, not of each recording
            raise DataError(
                f"none of the {len(failed)} utterances can be read; the first: {next(iter(failed.values()))}"
            )
        for utterance_id, reason in failed.items():
            writer.mark_unreadable(utterance_id, reason)
    return FeaturesReport(folder, encoded, len(utterances) - len(wanted), list(failed.values()))


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


def _is_held(writer: FeatureCacheWriter, utterance: Utterance) -> bool:
    """Whether the features are there; a recording that is not takes nothing from them, as in training."""
    path = utterance.audio_path
    return writer.holds(utterance.id, audio_stamp(path) if path.exists() else None)


def _batches(utterances: Sequence[Utterance], batch_size: int) -> Iterator[list[Utterance]]:
    """Batches of like length, from neighbours in the manifest (which are often neighbours on disk)."""
    for start in range(0, len(utterances), batch_size * SORTED_GROUP):
        group = sorted(utterances[start : start + batch_size * SORTED_GROUP], key=lambda u: u.duration)
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


@dataclass(frozen=True)
class _Clip:
    """A recording that was read, and the `audio_stamp` it had before."""

    id: str
    stamp: str
    waveform: Any


def _read(batch: Sequence[Utterance], extractor: Any, failed: dict[str, str]) -> list[_Clip]:
    """Waveforms of those that the encoder can read whole; the others go to `failed`, each with a line."""
    longest = getattr(extractor, "n_samples", None)  # beyond it, Whisper's extractor would cut without a word
    clips = []
    for utterance in batch:
        try:
            # Before it is read: of one that changes meanwhile, the features are then too old, not wrong for good.
            stamp = audio_stamp(utterance.audio_path)
            waveform = read_audio(utterance.audio_path, extractor.sampling_rate)
        except (AudioError, DataError) as error:
            failed[utterance.id] = str(error)
            continue
        seconds = len(waveform) / extractor.sampling_rate
        if seconds < MINIMUM_SECONDS:
            failed[utterance.id] = f"{utterance.audio_path} is {1000 * seconds:.0f} ms long: too short to hold a word"
        elif longest is not None and len(waveform) > longest:
            failed[utterance.id] = (
                f"{utterance.audio_path} is {seconds:.1f} s long: this encoder reads at most"
                f" {longest / extractor.sampling_rate:.0f} s at once"
            )
        else:
            clips.append(_Clip(utterance.id, stamp, waveform))
    return clips


@torch.inference_mode()
def _encode(encoder: SpeechEncoder, extractor: Any, clips: Sequence[_Clip]) -> Iterator[torch.Tensor]:
    """Speech embeddings `[T', D]` of each clip, on the CPU."""
    if not clips:
        return
    inputs = extractor(
        [clip.waveform for clip in clips],
        sampling_rate=extractor.sampling_rate,
        return_tensors="pt",
        return_attention_mask=True,
    )
    device = next(encoder.parameters()).device
    output = encoder(inputs["input_features"].to(device), inputs["attention_mask"].sum(dim=1).to(device))
    for embeddings, length in zip(output.speech_embeddings, output.speech_lengths.tolist(), strict=True):
        yield embeddings[:length].cpu().clone()
