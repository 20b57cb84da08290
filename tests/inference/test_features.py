"""The feature cache holds what the model computes, and is filled once."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from asr_doge.audio import read_audio, read_clip
from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance
from asr_doge.errors import CheckpointError, ConfigError, DataError
from asr_doge.inference import feature_encoding
from asr_doge.models import (
    LoadedModel,
    LogMelFeatureExtractor,
    assemble_model,
    load_encoder_alone,
    load_model,
)
from asr_doge.models.encoders import loading
from asr_doge.models.encoders.loading import feature_source
from asr_doge.training.datasets import CachedSpeechDataset, Example, SpeechDataset, collate_examples
from asr_doge.training.examples import NamedExamples
from tests import speech
from tests.inference.runs_of_features import contents, counts, features
from tests.models import tiny


def copy_of_encoder(granite_folder: Path, folder: Path, scale: float) -> Path:
    """The encoder with other weights."""
    folder.mkdir()
    (folder / "config.json").write_bytes((granite_folder / "config.json").read_bytes())
    weights = load_file(granite_folder / "model.safetensors")
    scaled = {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(scaled, folder / "model.safetensors")
    return folder


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


def both_ways(loaded: LoadedModel, utterances: list[Utterance], cache: FeatureCache) -> list[list[Example]]:
    """The examples of training from a cache, and of training without one."""
    datasets = (
        CachedSpeechDataset(utterances, loaded.processor, cache),
        SpeechDataset(utterances, loaded.processor),
    )
    return [[dataset[index] for index in range(len(utterances))] for dataset in datasets]


def test_training_from_the_cache_gives_the_same_loss(corpus: Path, granite_folder: Path, loaded: LoadedModel) -> None:
    """Equality 3."""
    report = features(corpus, granite_folder, batch_seconds=3)
    assert report.folder == str(corpus / "features")
    config = loaded.model.config
    source = feature_source(
        config.speech_encoder_fingerprint, config.encoder_config, loaded.processor.feature_extractor
    )
    cache = FeatureCache.open(report.folder, expected_source=source)
    for split in ("train", "dev", "test"):
        utterances = read_manifest(corpus / f"{split}_manifest.json")
        cache.require_fresh(utterances)
        cached, computed = both_ways(loaded, utterances, cache)
        (loss, logits), (wanted_loss, wanted_logits) = (loss_and_logits(loaded, batch) for batch in (cached, computed))
        assert abs(loss - wanted_loss) < 1e-4 * wanted_loss
        assert tiny.relative_difference(logits, wanted_logits) < 1e-3
        ids = [loaded.model.generate(**collate_examples(batch), max_new_tokens=6) for batch in (cached, computed)]
        assert torch.equal(*ids)
    others = loss_and_logits(loaded, cached[::-1])[1]
    assert tiny.relative_difference(others, wanted_logits) > 0.1  # the clips differ, so the test can fail


def test_a_second_run_encodes_nothing(corpus: Path, granite_folder: Path) -> None:
    assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    before = contents(corpus / "features")
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert contents(corpus / "features") == before


def test_a_copied_corpus_needs_nothing_encoded_and_a_replaced_recording_is_found_if_asked(
    corpus: Path, granite_folder: Path
) -> None:
    features(corpus, granite_folder)
    utterance = read_manifest(corpus / "train_manifest.json")[1]
    for path in (corpus / "audio").iterdir():
        os.utime(path, ns=(1, 1))  # as after `cp -r`
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    speech.write_wav(utterance.audio_path, tiny.random_waveform(utterance.duration, seed=77))
    os.utime(utterance.audio_path, ns=(1, 1))
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert counts(features(corpus, granite_folder, verify=True)) == (1, 8, 0)
    assert counts(features(corpus, granite_folder, verify=True)) == (0, 9, 0)


def test_new_and_changed_recordings_are_encoded(corpus: Path, granite_folder: Path) -> None:
    features(corpus, granite_folder)
    utterances = read_manifest(corpus / "train_manifest.json")
    cache = FeatureCache.open(corpus / "features")
    before = {utterance.id: cache[utterance.id].clone() for utterance in utterances}
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
    before = contents(corpus / "features")
    with pytest.raises(DataError, match=r"features holds the features of 9 utterances by another encoder .*--output"):
        features(corpus, other)
    assert contents(corpus / "features") == before
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


@pytest.mark.parametrize(
    "setting",
    [
        {"text_config": {"attention_dropout": 0.3, "num_hidden_layers": 9, "rms_norm_eps": 1e-3}},
        {"encoder_config": {"dropout": 0.25}, "projector_config": {"hidden_dropout_prob": 0.1}},
        {"initializer_range": 0.7, "audio_token_index": 5, "has_lora_adapter": True},
    ],
    ids=["language model", "dropout", "training and tokens"],
)
def test_what_the_encoder_does_not_read_changes_nothing(
    corpus: Path, granite_folder: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    features(corpus, granite_folder)
    same = copy_of_encoder(granite_folder, tmp_path / "same", 1.0)
    fields = json.loads((same / "config.json").read_text())
    for name, value in setting.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    (same / "config.json").write_text(json.dumps(fields))
    assert counts(features(corpus, same)) == (0, 9, 0)


@pytest.mark.parametrize(
    ("setting", "is_read"),
    [
        ({"decoder_layers": 9, "decoder_attention_heads": 1, "vocab_size": 99, "max_target_positions": 7}, False),
        ({"dropout": 0.1, "encoder_layerdrop": 0.3, "mask_time_prob": 0.4, "begin_suppress_tokens": [5]}, False),
        ({"encoder_attention_heads": 1}, True),
        ({"activation_function": "relu"}, True),
    ],
)
def test_nor_does_whispers_decoder(setting: dict[str, Any], is_read: bool) -> None:
    config = tiny.whisper_model().config
    other = type(config)(**config.to_dict() | setting)
    extractor = LogMelFeatureExtractor()
    assert (feature_source("x", config, extractor) != feature_source("x", other, extractor)) == is_read


def test_another_front_end_is_another_encoder(granite_folder: Path, loaded: LoadedModel) -> None:
    config = loaded.model.config.encoder_config
    ours, other = (feature_source("x", config, LogMelFeatureExtractor(padding_value=value)) for value in (0.0, 1.0))
    assert ours == feature_source("x", config, loaded.processor.feature_extractor)
    assert ours != other


def test_a_cache_from_before_clips_were_levelled_is_refused(
    corpus: Path, granite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 read very quiet clips, and those above full scale, as they were."""
    with monkeypatch.context() as patch:
        patch.setattr(loading, "FRONT_END_VERSION", 1)
        features(corpus, granite_folder)
    before = contents(corpus / "features")
    with pytest.raises(DataError, match=r"another encoder \(front_end_version 1, not 2\)"):
        features(corpus, granite_folder)
    assert contents(corpus / "features") == before


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
    assert counts(features(corpus, granite_folder)) == (1, 8, 0)
    assert not FeatureCache.open(report.folder).unreadable


def test_an_audio_folder_that_is_away_costs_nothing(corpus: Path, granite_folder: Path) -> None:
    audio, elsewhere = corpus / "audio", corpus / "elsewhere"
    audio.rename(elsewhere)
    with pytest.raises(DataError, match="none of the 9 utterances can be read"):
        features(corpus, granite_folder)
    assert not FeatureCache.exists(corpus / "features")
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

    def read_slowly(path: Path, sampling_rate: int, longest: int | None) -> NDArray[np.float32]:
        waveform = read_clip(path, sampling_rate, longest)
        if path == changed:
            speech.write_wav(path, waveform[::-1].copy())
        return waveform

    with monkeypatch.context() as patch:
        patch.setattr(feature_encoding, "read_clip", read_slowly)
        assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    assert counts(features(corpus, granite_folder)) == (1, 8, 0)


def test_unreadable_recordings_are_left_out_and_named(corpus: Path, granite_folder: Path, loaded: LoadedModel) -> None:
    broken, gone, short, *_ = utterances = read_manifest(corpus / "train_manifest.json")
    broken.audio_path.write_bytes(b"RIFF, but no sound")
    gone.audio_path.unlink()
    speech.write_wav(short.audio_path, tiny.random_waveform(0.05))
    report = features(corpus, granite_folder, batch_seconds=4)
    assert counts(report) == (6, 0, 3)
    for line, utterance in zip(sorted(report.failed), (broken, gone, short), strict=True):
        assert str(utterance.audio_path) in line
        assert "\n" not in line
    cache = FeatureCache.open(report.folder)
    assert {utterance.id for utterance in utterances if utterance.id not in cache} == {broken.id, gone.id, short.id}
    computed = NamedExamples(SpeechDataset(utterances, loaded.processor))  # without a cache the same are left out
    assert [bool(computed[index].reason) for index in range(len(utterances))] == [True] * 3 + [False] * 2
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2e-3), ("int8", 5e-3)])
def test_smaller_storage_changes_the_loss_little(
    corpus: Path, granite_folder: Path, loaded: LoadedModel, dtype: str, tolerance: float
) -> None:
    """Equality 3, to the rounding of the storage."""
    cache = FeatureCache.open(features(corpus, granite_folder, dtype=dtype).folder)
    utterances = read_manifest(corpus / "train_manifest.json")
    loss, wanted = (loss_and_logits(loaded, batch)[0] for batch in both_ways(loaded, utterances, cache))
    assert 0 < abs(loss - wanted) < tolerance * wanted


def test_the_encoder_computes_in_a_lower_precision_if_asked(
    corpus: Path, granite_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    utterances = read_manifest(corpus / "train_manifest.json")
    lower = FeatureCache.open(features(corpus, granite_folder, compute_dtype="bf16").folder)
    exact = FeatureCache.open(features(corpus, granite_folder, output_dir=str(tmp_path / "exact")).folder)
    encoder = load_encoder_alone(granite_folder, device="cpu", dtype=torch.bfloat16)
    for utterance in utterances:
        wanted = encoder.encode([read_audio(utterance.audio_path)]).speech_embeddings[0]
        assert wanted.dtype == torch.bfloat16
        assert tiny.relative_difference(lower[utterance.id], wanted.float()) < 2e-2  # its neighbours round otherwise
        assert 1e-4 < tiny.relative_difference(lower[utterance.id], exact[utterance.id]) < 5e-2
    assert lower[utterances[0].id].dtype == torch.float32  # how it is stored is another question
    loss, wanted = (loss_and_logits(loaded, batch)[0] for batch in both_ways(loaded, utterances, lower))
    assert 0 < abs(loss - wanted) < 5e-3 * wanted
    with pytest.raises(DataError, match=r"another storage \(--compute_dtype bf16, not fp32\)"):
        features(corpus, granite_folder)


def test_compiled_blocks_give_the_same_features(
    corpus: Path, granite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches by the graphs that were made before the first; a GPU's own compiler is not tested here."""
    torch._dynamo.reset()  # of a function, only so many graphs are kept
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    plain = FeatureCache.open(features(corpus, granite_folder).folder)
    compiled = FeatureCache.open(features(corpus, granite_folder, output_dir=str(tmp_path), compile=True).folder)
    assert graphs.frame_count == 2
    for utterance in read_manifest(corpus / "train_manifest.json"):
        assert tiny.relative_difference(compiled[utterance.id], plain[utterance.id]) < 1e-5
    assert features(corpus, granite_folder, compile=True).encoded == 0  # and nothing is compiled
    assert graphs.frame_count == 2


def test_a_cache_in_full_precision_says_nothing_of_it(corpus: Path, granite_folder: Path) -> None:
    """So that older versions read it, and go on with it."""
    features(corpus, granite_folder)
    (path,) = (corpus / "features").glob("features-*")
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["asr_doge"])
    assert content["storage"] == {"dtype": "fp32", "ctc_top_k": 8, "augment_copies": 0}


def test_the_ctc_head_is_kept_too(corpus: Path, granite_folder: Path, loaded: LoadedModel) -> None:
    utterance, *_ = read_manifest(corpus / "test_manifest.json")
    cache = FeatureCache.open(features(corpus, granite_folder, ctc_top_k=5).folder)
    found = cache.features(utterance.id)
    batch = loaded.processor(audio=read_audio(utterance.audio_path), sampling_rate=16_000)
    logits = loaded.model.encode(batch["input_features"], batch["attention_mask"], return_ctc_logits=True).ctc_logits
    assert logits is not None
    best = logits[0].log_softmax(dim=-1).topk(5)
    assert found.ctc_ids is not None
    assert found.ctc_log_probs is not None
    assert torch.equal(found.ctc_ids[:, 0].long(), best.indices[:, 0])
    torch.testing.assert_close(found.ctc_log_probs.float(), best.values, rtol=1e-2, atol=1e-2)


def test_an_encoder_without_a_ctc_head(corpus: Path, whisper_folder: Path) -> None:
    cache = FeatureCache.open(features(corpus, whisper_folder).folder)
    assert cache.features("test-0").ctc_ids is None


def test_training_utterances_get_augmented_copies(corpus: Path, granite_folder: Path, tmp_path: Path) -> None:
    plain = FeatureCache.open(features(corpus, granite_folder, output_dir=str(tmp_path / "plain")).folder)
    caches = [
        FeatureCache.open(features(corpus, granite_folder, augment_copies=2, output_dir=str(tmp_path / name)).folder)
        for name in ("a", "b")
    ]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for utterance in read_manifest(corpus / "train_manifest.json"):
        assert caches[0].num_copies(utterance.id) == 3
        original, one, two = (caches[0].features(utterance.id, copy).embeddings for copy in range(3))
        torch.testing.assert_close(original, plain[utterance.id], rtol=1e-3, atol=1e-4)
        assert original.shape != one.shape or not torch.allclose(original, one, atol=1e-2)
        assert one.shape != two.shape or not torch.allclose(one, two, atol=1e-2)
    assert caches[0].num_copies("dev-0") == 1
    assert counts(features(corpus, granite_folder, augment_copies=2, output_dir=str(tmp_path / "a"))) == (0, 9, 0)
    with pytest.raises(DataError, match=r"another storage \(--augment_copies 2, not 0\)"):
        features(corpus, granite_folder, output_dir=str(tmp_path / "a"))


def test_a_cache_elsewhere(corpus: Path, granite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "memory://features-of-a-corpus"
    assert counts(features(corpus, granite_folder, output_dir=url)) == (9, 0, 0)
    assert "9 utterances to encode, 0.00 h, into 1 of 1 files, about" in capsys.readouterr().err
    assert counts(features(corpus, granite_folder, output_dir=url)) == (0, 9, 0)
    features(corpus, granite_folder)
    here, there = FeatureCache.open(corpus / "features"), FeatureCache.open(url)
    assert all(torch.equal(here[id_], there[id_]) for id_ in here)


def test_names_of_any_script(corpus: Path, granite_folder: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    home = tmp_path / "größe 你好" / "data"
    shutil.copytree(corpus, home)
    first, *others = read_manifest(home / "train_manifest.json")
    path = first.audio_path.rename(home / "audio" / "ein Wort, ñandú.wav")
    write_manifest(home / "train_manifest.json", [replace(first, id="слово 1", audio_path=path), *others])
    report = features(home, granite_folder, output_dir=str(home / "кэш"))
    assert counts(report) == (9, 0, 0)
    utterances = read_manifest(home / "train_manifest.json")
    cache = FeatureCache.open(report.folder)
    cache.require_fresh(utterances)
    assert len(CachedSpeechDataset(utterances, loaded.processor, cache)[0]["speech_embeddings"]) > 0


def test_a_file_without_any_readable_recording(corpus: Path, granite_folder: Path) -> None:
    """Whatever the order of the files, only a corpus without any is an error."""
    *broken, good = read_manifest(corpus / "train_manifest.json")
    for name in ("dev_manifest.json", "test_manifest.json"):
        (corpus / name).unlink()
    for utterance in broken:
        utterance.audio_path.write_bytes(b"no sound")
    report = features(corpus, granite_folder, shard_minutes=0.001)
    assert counts(report) == (1, 0, 4)
    cache = FeatureCache.open(report.folder)
    assert (set(cache), set(cache.unreadable)) == ({good.id}, {utterance.id for utterance in broken})
    before = contents(corpus / "features")
    assert counts(features(corpus, granite_folder, shard_minutes=0.001)) == (0, 1, 4)
    assert contents(corpus / "features") == before


@pytest.mark.parametrize(
    "options",
    [
        *({"shard": shard} for shard in ("0/3", "4/3", "3", "a/b", "1/0", "-1/3", "")),
        *({name: 0} for name in ("batch_seconds", "shard_minutes", "num_workers")),
        *({name: -1} for name in ("augment_copies", "ctc_top_k")),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(corpus: Path, granite_folder: Path, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=rf"^--{name} {value} cannot be used: "):
        features(corpus, granite_folder, **options)
