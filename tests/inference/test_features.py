"""The feature cache holds what the model computes, and is filled once."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from asr_doge.audio import read_audio
from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.errors import CheckpointError, ConfigError, DataError
from asr_doge.inference import features as inference_features
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import FeaturesReport, compute_features
from asr_doge.models import LoadedModel, LogMelFeatureExtractor, assemble_model, load_model
from asr_doge.models.encoders.loading import feature_source
from asr_doge.training.datasets import CachedSpeechDataset, Example, SpeechDataset, collate_examples
from tests import speech
from tests.models import tiny


def features(data: Path, encoder: Path, **options: object) -> FeaturesReport:
    return compute_features(FeaturesConfig(str(data), speech_encoder=str(encoder), device="cpu", **options))  # type: ignore[arg-type]


def counts(report: FeaturesReport) -> tuple[int, int, int]:
    return report.encoded, report.kept, len(report.failed)


def copy_of_encoder(granite_folder: Path, folder: Path, scale: float) -> Path:
    """The encoder with other weights."""
    folder.mkdir()
    (folder / "config.json").write_bytes((granite_folder / "config.json").read_bytes())
    weights = load_file(granite_folder / "model.safetensors")
    scaled = {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(scaled, folder / "model.safetensors")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return speech.write_corpus(tmp_path / "processed", train=5, dev=2, test=2)


@pytest.fixture(scope="module")
def loaded(granite_folder: Path, doge_folder: Path) -> LoadedModel:
    """In float32, as `features` computes."""
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", adapter_stack=2)
    tiny.randomize(loaded.model.adapter, seed=1)
    return loaded


def loss_and_logits(loaded: LoadedModel, examples: list[Example]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = loaded.model(**collate_examples(examples))
    return output.loss, output.logits


def test_training_from_the_cache_gives_the_same_loss(corpus: Path, granite_folder: Path, loaded: LoadedModel) -> None:
    """Equality 3."""
    report = features(corpus, granite_folder, batch_size=2)
    assert report.folder == corpus / "features"
    config = loaded.model.config
    source = feature_source(
        config.speech_encoder_fingerprint, config.encoder_config, loaded.processor.feature_extractor
    )
    cache = FeatureCache.open(report.folder, expected_source=source)
    for split in ("train", "dev", "test"):
        utterances = read_manifest(corpus / f"{split}_manifest.json")
        cache.require_fresh(utterances)
        datasets = (
            CachedSpeechDataset(utterances, loaded.processor, cache),
            SpeechDataset(utterances, loaded.processor),
        )
        cached, computed = ([dataset[index] for index in range(len(utterances))] for dataset in datasets)
        (loss, logits), (wanted_loss, wanted_logits) = (loss_and_logits(loaded, batch) for batch in (cached, computed))
        assert abs(loss - wanted_loss) < 1e-4 * wanted_loss
        assert tiny.relative_difference(logits, wanted_logits) < 1e-3
        ids = [loaded.model.generate(**collate_examples(batch), max_new_tokens=6) for batch in (cached, computed)]
        assert torch.equal(*ids)
    others = loss_and_logits(loaded, cached[::-1])[1]
    assert tiny.relative_difference(others, wanted_logits) > 0.1  # the clips differ, so the test can fail


def test_a_second_run_encodes_nothing(corpus: Path, granite_folder: Path) -> None:
    assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    before = {path.name: path.read_bytes() for path in (corpus / "features").iterdir()}
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert {path.name: path.read_bytes() for path in (corpus / "features").iterdir()} == before


def test_new_and_changed_recordings_are_encoded(corpus: Path, granite_folder: Path) -> None:
    features(corpus, granite_folder)
    utterances = read_manifest(corpus / "train_manifest.json")
    cache = FeatureCache.open(corpus / "features")
    before = {utterance.id: cache[utterance.id] for utterance in utterances}
    changed = utterances[1]
    speech.write_wav(changed.audio_path, tiny.random_waveform(changed.duration, seed=77))
    os.utime(changed.audio_path, ns=(1, 1))
    write_manifest(corpus / "train_manifest.json", [*utterances, *speech.utterances(corpus, "more", 2)])
    assert counts(features(corpus, granite_folder)) == (3, 8, 0)
    cache = FeatureCache.open(corpus / "features")
    assert {id_ for id_, tensor in before.items() if not torch.equal(cache[id_], tensor)} == {changed.id}
    assert len(cache) == 11


def test_another_encoder_computes_everything_anew(corpus: Path, granite_folder: Path, tmp_path: Path) -> None:
    features(corpus, granite_folder)
    other = copy_of_encoder(granite_folder, tmp_path / "other", 1.01)
    same = copy_of_encoder(granite_folder, tmp_path / "same", 1.0)
    assert counts(features(corpus, same)) == (0, 9, 0)
    before = {path: path.read_bytes() for path in (corpus / "features").iterdir()}
    with pytest.raises(DataError, match=r"features holds the features of 9 utterances by another encoder: .*--output"):
        features(corpus, other)
    assert {path: path.read_bytes() for path in (corpus / "features").iterdir()} == before
    assert counts(features(corpus, other, output_dir=str(tmp_path / "others"))) == (9, 0, 0)
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert counts(features(corpus, other, overwrite=True)) == (9, 0, 0)
    assert counts(features(corpus, other)) == (0, 9, 0)


@pytest.mark.parametrize(
    "setting", [{"projector_config": {"num_attention_heads": 1}}, {"encoder_config": {"context_size": 100}}]
)
def test_the_same_weights_with_other_settings_are_another_encoder(
    corpus: Path, granite_folder: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    features(corpus, granite_folder)
    other = copy_of_encoder(granite_folder, tmp_path / "other", 1.0)
    fields = json.loads((other / "config.json").read_text())
    for name, value in setting.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    (other / "config.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match="by another encoder"):
        features(corpus, other)


def test_where_the_encoder_is_and_who_wrote_it_changes_nothing(
    corpus: Path, granite_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    features(corpus, granite_folder)
    same = copy_of_encoder(granite_folder, tmp_path / "same", 1.0)
    speech.edit_json(same / "config.json", transformers_version="5.0.0", architectures=["Other"], dtype="bfloat16")
    assert counts(features(corpus, same)) == (0, 9, 0)
    # A checkpoint's own copy of the encoder's configuration is as good as the original.
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu")
    config = again.model.config
    source = feature_source(config.speech_encoder_fingerprint, config.encoder_config, again.processor.feature_extractor)
    FeatureCache.open(corpus / "features", expected_source=source)


def test_another_front_end_is_another_encoder(granite_folder: Path, loaded: LoadedModel) -> None:
    config = loaded.model.config.encoder_config
    ours, other = (feature_source("x", config, LogMelFeatureExtractor(padding_value=value)) for value in (0.0, 1.0))
    assert ours == feature_source("x", config, loaded.processor.feature_extractor)
    assert ours != other


def test_a_repaired_recording_is_used_again(corpus: Path, granite_folder: Path) -> None:
    broken, *_ = read_manifest(corpus / "train_manifest.json")
    sound, status = broken.audio_path.read_bytes(), broken.audio_path.stat()
    features(corpus, granite_folder)
    broken.audio_path.write_bytes(b"RIFF, but no sound")
    report = features(corpus, granite_folder)
    assert counts(report) == (0, 8, 1)
    assert list(FeatureCache.open(report.folder).unreadable) == [broken.id]
    broken.audio_path.write_bytes(sound)
    os.utime(broken.audio_path, ns=(status.st_atime_ns, status.st_mtime_ns))  # from a backup, as it was
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert not FeatureCache.open(report.folder).unreadable


def test_an_audio_folder_that_is_away_costs_nothing(corpus: Path, granite_folder: Path) -> None:
    audio, elsewhere = corpus / "audio", corpus / "elsewhere"
    audio.rename(elsewhere)
    with pytest.raises(DataError, match="none of the 9 utterances can be read"):
        features(corpus, granite_folder)
    assert not FeatureCache.open(corpus / "features").unreadable
    elsewhere.rename(audio)
    assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    audio.rename(elsewhere)
    report = features(corpus, granite_folder)
    assert counts(report) == (0, 9, 0)
    cache = FeatureCache.open(report.folder)
    assert not cache.unreadable
    cache.require_fresh(read_manifest(corpus / "train_manifest.json"))


def test_a_recording_that_changes_while_it_is_read_is_encoded_again(
    corpus: Path, granite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = read_manifest(corpus / "train_manifest.json")[1].audio_path

    def read_slowly(path: Path, sampling_rate: int) -> NDArray[np.float32]:
        waveform = read_audio(path, sampling_rate)
        if path == changed:
            os.utime(path, ns=(1, 1))
        return waveform

    with monkeypatch.context() as patch:
        patch.setattr(inference_features, "read_audio", read_slowly)
        assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    assert counts(features(corpus, granite_folder)) == (1, 8, 0)


def test_unreadable_recordings_are_left_out_and_named(corpus: Path, granite_folder: Path) -> None:
    broken, gone, short, *_ = utterances = read_manifest(corpus / "train_manifest.json")
    broken.audio_path.write_bytes(b"RIFF, but no sound")
    gone.audio_path.unlink()
    speech.write_wav(short.audio_path, tiny.random_waveform(0.01))
    report = features(corpus, granite_folder, batch_size=3)
    assert counts(report) == (6, 0, 3)
    for line, utterance in zip(sorted(report.failed), (broken, gone, short), strict=True):
        assert str(utterance.audio_path) in line
        assert "\n" not in line
    cache = FeatureCache.open(report.folder)
    assert {utterance.id for utterance in utterances if utterance.id not in cache} == {broken.id, gone.id, short.id}
    assert counts(features(corpus, granite_folder)) == (0, 6, 3)


def test_recordings_longer_than_the_encoder_reads_are_left_out(corpus: Path, whisper_folder: Path) -> None:
    """Whisper's extractor cuts them without a word, and the text would be of more than the features."""
    long, *_ = read_manifest(corpus / "test_manifest.json")
    speech.write_wav(long.audio_path, tiny.random_waveform(31.0))
    report = features(corpus, whisper_folder)
    assert counts(report) == (8, 0, 1)
    assert report.failed == [f"{long.audio_path} is 31.0 s long: this encoder reads at most 30 s at once"]


def test_nothing_readable_is_an_error(corpus: Path, granite_folder: Path) -> None:
    for path in (corpus / "audio").iterdir():
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"none of the 9 utterances can be read; the first: .*wav"):
        features(corpus, granite_folder)


def test_one_id_for_two_recordings_is_an_error(corpus: Path, granite_folder: Path) -> None:
    """The cache goes by id: the one's features would be taken for the other's."""
    dev = speech.utterances(corpus, "train", 1, seed=5)[0]
    audio = speech.write_wav(corpus / "elsewhere" / "train-0.wav", np.full(8000, 0.1, dtype=np.float32))
    write_manifest(corpus / "dev_manifest.json", [type(dev)(dev.id, audio, dev.text, dev.raw_text, 0.5)])
    with pytest.raises(DataError, match="'train-0'"):
        features(corpus, granite_folder)


def test_one_recording_in_two_manifests_is_encoded_once(corpus: Path, granite_folder: Path) -> None:
    train = read_manifest(corpus / "train_manifest.json")
    write_manifest(corpus / "dev_manifest.json", train)
    assert counts(features(corpus, granite_folder)) == (7, 0, 0)


def test_no_language_model_is_needed(corpus: Path, granite_folder: Path, tmp_path: Path) -> None:
    """Of a full checkpoint only the encoder's tensors are read: without the others it works as well."""
    weights = load_file(granite_folder / "model.safetensors")
    folder = copy_of_encoder(granite_folder, tmp_path / "encoder", 1.0)
    encoder_only = {name: tensor for name, tensor in weights.items() if "language_model" not in name}
    assert encoder_only.keys() < weights.keys()
    save_file(encoder_only, folder / "model.safetensors")
    assert counts(features(corpus, folder, output_dir=str(tmp_path / "cache"))) == (9, 0, 0)
    assert counts(features(corpus, granite_folder, output_dir=str(tmp_path / "cache"))) == (0, 9, 0)


def test_what_is_missing_is_named(corpus: Path, granite_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*_manifest.json in .*nowhere; run `asr-doge process` first"):
        features(tmp_path / "nowhere", granite_folder)
    with pytest.raises(CheckpointError, match="no-such-encoder"):
        features(corpus, tmp_path / "no-such-encoder")
    with pytest.raises(ConfigError, match="batch_size"):
        features(corpus, granite_folder, batch_size=0)
