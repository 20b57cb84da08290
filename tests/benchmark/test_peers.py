"""Peers get the same files, are scored by the same rules, and a wrong name is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    pipeline,
)

from asr_doge.audio.reading import read_audio
from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig, peers
from asr_doge.benchmark.peers import load_peer
from asr_doge.benchmark.report import read_report
from asr_doge.data import read_manifest
from asr_doge.errors import CheckpointError, ConfigError
from tests import speech
from tests.models import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CTC recogniser as Hugging Face has them."""
    folder = tmp_path_factory.mktemp("peer") / "wav2vec2"
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    vocabulary = folder.parent / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(letters),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_kernel=(10, 8),
            conv_stride=(20, 16),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            pad_token_id=0,
        )
    )
    tiny.randomize(model, seed=5)
    model.save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)
    return folder


def test_a_hugging_face_model_beside_ours(wav2vec2: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    checkpoint = speech.brief_checkpoint(checkpoint_folder, tmp_path / "checkpoint")
    corpus = speech.write_corpus(tmp_path / "processed", train=1, dev=1, test=4)
    samples = read_manifest(corpus / "test_manifest.json")
    samples[1].audio_path.write_bytes(b"no sound")
    speech.write_wav(samples[3].audio_path, tiny.random_waveform(0.005))  # too short for its convolutions
    config = BenchmarkConfig(str(checkpoint), num_speed_runs=1, batch_sizes=[], device="cpu", embed_audio=False)
    config.output_dir, config.peer = str(tmp_path / "report"), [f"hf:{wav2vec2}"]
    result = ASRDogeBenchmark(config).run_full_benchmark(samples)
    (peer,) = result.peers
    assert [sample.id for sample in peer.samples] == [sample.id for sample in result.samples]
    assert [sample.error is None for sample in peer.samples] == [True, False, True, False]
    assert "test-3.wav: hf:" in str(peer.samples[3].error)
    alone: Any = pipeline("automatic-speech-recognition", str(wav2vec2), device="cpu")
    for sample, heard in ((samples[0], peer.samples[0]), (samples[2], peer.samples[2])):
        assert heard.raw_hypothesis == alone({"raw": read_audio(sample.audio_path), "sampling_rate": 16_000})["text"]
    assert any(sample.raw_hypothesis for sample in peer.samples)
    assert peer.speed is not None
    assert peer.speed.real_time_factor > 0
    assert peer.speed.stages_ms == {}
    assert read_report(result.report_path).peers == result.peers
    assert f"hf:{wav2vec2}" in result.page_path.read_text(encoding="utf-8")
    assert sorted(Path(config.output_dir).iterdir()) == sorted([result.report_path, result.page_path])


@pytest.mark.parametrize("name", ["nobody", "hf:", "pocketsphinx2"])
def test_an_unknown_peer_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--peer {name}: no such peer"):
        load_peer(name, CPU)


def test_a_missing_package_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asr-doge\[peers\]'"):
        ASRDogeBenchmark(BenchmarkConfig("./none", peer=["pocketsphinx"]))


def test_what_is_no_recogniser_is_named(doge_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--peer hf:.* cannot be loaded as a speech recogniser") as caught:
        load_peer(f"hf:{doge_folder}", CPU)
    assert "\n" not in str(caught.value)


def test_pocketsphinx_hears_nothing_in_silence() -> None:
    pytest.importorskip("pocketsphinx")
    peer = load_peer("pocketsphinx", CPU)
    assert peer.transcribe(np.zeros(3200, dtype=np.float32)).strip() == ""
