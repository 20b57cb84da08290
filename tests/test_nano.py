"""The bundled model: small, whole, and good at what it is for, which is English digit strings."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import asr_doge
from asr_doge.audio import SAMPLE_RATE, Voice, synthesize
from asr_doge.data.configuration import ProcessConfig
from asr_doge.data.digits import (
    DIGIT_WORDS,
    DigitClip,
    read_fsdd,
    recorded_clips,
    split_voices,
    synthesized_clips,
    write_clips,
)
from asr_doge.data.processing import process_corpus
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognizer
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import LoadedModel, load_model
from asr_doge.models.checkpoints import BUNDLED_MODELS
from asr_doge.text.scoring import score
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.training import train
from tests.models import tiny

FSDD = Path(__file__).parents[2] / "shared" / "data" / "fsdd"
NANO = BUNDLED_MODELS["nano"]


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("nano", device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[DigitClip]:
    """20 strings in voices that nothing was trained on."""
    return list(synthesized_clips(20, split_voices().unseen, seed=11))


@pytest.fixture(scope="module")
def heard(nano: LoadedModel, clips: list[DigitClip]) -> list[str]:
    """What nano hears in them, in float32 and batches of 8."""
    return texts(nano, [clip.waveform for clip in clips], 8)


def texts(loaded: LoadedModel, waveforms: list[np.ndarray[tuple[int], np.dtype[np.float32]]], size: int) -> list[str]:
    return [result.text for result in Transcriber(loaded, batch_size=size).transcribe(waveforms)]


def test_it_is_whole_and_small() -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json", "processor_config.json", "README.md"):
        assert (NANO / name).is_file(), name
    for part in ("encoder", "language_model"):
        assert (NANO / part / "model.safetensors").is_file()
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors", ".txt", ".jinja"}  # no pickle
    config = json.loads((NANO / "config.json").read_text())
    assert (config["speech_encoder"], config["language_model"]) == ("nano/encoder", "nano/language_model")


def test_it_knows_digits_in_voices_it_never_heard(clips: list[DigitClip], heard: list[str]) -> None:
    scores = score([" ".join(clip.digits) for clip in clips], heard)
    assert scores.wer <= 0.15, list(zip([" ".join(clip.digits) for clip in clips], heard, strict=True))


@pytest.mark.parametrize(
    "options", [{"dtype": "bf16"}, {"quantization": "int8"}, {"dtype": "bf16", "quantization": "int8"}]
)
def test_lower_precision_hears_nearly_the_same(clips: list[DigitClip], heard: list[str], options: Any) -> None:
    waveforms = [clip.waveform for clip in clips]
    lower = asr_doge.load("nano", "cpu", **options)
    assert score(heard, [result.text for result in lower.transcribe(waveforms)]).wer <= 0.03
    floating = {weight.dtype for weight in lower.loaded.model.parameters() if weight.is_floating_point()}
    assert floating == {torch.bfloat16 if "dtype" in options else torch.float32}


@pytest.mark.skipif(not FSDD.is_dir(), reason="the Free Spoken Digit Dataset is not beside the checkout")
def test_it_knows_digits_of_a_person_it_never_heard(nano: LoadedModel) -> None:
    """The speaker kept out of training, in other strings than chose the checkpoint; docs/nano.md has the exact rate."""
    strings = list(recorded_clips(200, read_fsdd(FSDD, only=["lucas"]), seed=11))
    heard = texts(nano, [clip.waveform for clip in strings], 8)
    assert score([" ".join(clip.digits) for clip in strings], heard).wer <= 0.08


@pytest.mark.parametrize("level", [None, -70.0, -50.0])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 6.0])
def test_where_nobody_speaks_it_writes_nothing(nano: LoadedModel, level: float | None, seconds: float) -> None:
    samples = int(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(samples, dtype=np.float32)
    waveform = np.zeros_like(noise) if level is None else noise * np.float32(10 ** (level / 20))
    assert texts(nano, [waveform], 1) == [""]


def test_batch_equals_single(clips: list[DigitClip]) -> None:
    """Equality 2: texts exactly, features and logits as far as float64 goes."""
    loaded = load_model("nano", device="cpu", dtype=torch.float64)
    waveforms = [clip.waveform for clip in clips[:8]]
    alone = texts(loaded, waveforms, 1)
    assert texts(loaded, waveforms, 8) == alone
    references = [" ".join(clip.digits) for clip in clips[:4]]
    together = loaded.processor(waveforms[:4], text=references, sampling_rate=SAMPLE_RATE)
    with torch.no_grad():
        logits = loaded.model(**together).logits
        for row, waveform, reference in zip(logits, waveforms, references, strict=False):
            single = loaded.processor([waveform], text=[reference], sampling_rate=SAMPLE_RATE)
            wanted = loaded.model(**single).logits[0]
            assert tiny.relative_difference(row[-len(wanted) :], wanted) < 1e-6


def test_batch_and_single_write_the_same_in_float32(
    nano: LoadedModel, clips: list[DigitClip], heard: list[str]
) -> None:
    assert texts(nano, [clip.waveform for clip in clips], 1) == heard


def test_a_reloaded_copy_is_the_same(nano: LoadedModel, clips: list[DigitClip], tmp_path: Path) -> None:
    nano.save(tmp_path / "copy")
    again = load_model(tmp_path / "copy", device="cpu")
    batch = nano.processor([clip.waveform for clip in clips[:3]], sampling_rate=SAMPLE_RATE)
    with torch.no_grad():
        assert torch.equal(again.model(**batch).logits, nano.model(**batch).logits)


def test_pipeline_and_front_door_give_the_transcribers_text(
    nano: LoadedModel, clips: list[DigitClip], tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, clips[0].waveform, SAMPLE_RATE, subtype="FLOAT")
    result = asr_doge.transcribe(path, model="nano")
    assert [result.text] == texts(nano, [clips[0].waveform], 1)
    recognize = pipeline("automatic-speech-recognition", model=str(NANO), device="cpu")
    recognized: dict[str, str] = recognize(clips[0].waveform)  # type: ignore[assignment]
    assert recognized["text"].strip() == result.text


def spoken_words(voice: str) -> dict[str, list[np.ndarray[tuple[int], np.dtype[np.float32]]]]:
    """Each digit word by itself, without silence around it."""
    words = {}
    for word in DIGIT_WORDS:
        spoken = synthesize(word, Voice(voice))
        loud = np.flatnonzero(np.abs(spoken) > 0.01)
        words[word] = [spoken[loud[0] : loud[-1] + 1]]
    return words


def test_a_long_recording_says_what_its_parts_say(nano: LoadedModel) -> None:
    """Equality 7: cut wherever somebody pauses, minutes of strings have the words of the strings read whole."""
    recordings = {voice: spoken_words(voice) for voice in ("en-us", "en-gb", "en-gb-x-rp")}
    strings = [clip for seed in range(3) for clip in recorded_clips(6, recordings, seed)]
    rng = np.random.default_rng(0)
    parts = [(clip.waveform, np.zeros(int(rng.uniform(0.1, 0.6) * SAMPLE_RATE), np.float32)) for clip in strings]
    long = np.concatenate(list(chain.from_iterable(parts)))
    assert len(long) > 150 * SAMPLE_RATE
    references = [" ".join(clip.digits) for clip in strings]
    whole = Recognizer(nano, DecodingConfig()).recognize([clip.waveform for clip in strings])
    whole_wer = score(references, [recognition.text for recognition in whole]).wer
    assert whole_wer < 0.05
    assert score([" ".join(references)], texts(nano, [long], 8)).wer == pytest.approx(whole_wer, abs=0.01)


@pytest.mark.parametrize("name", ["melody", "drums", "swelling noise"])
def test_where_nobody_speaks_however_lively_it_writes_nothing(nano: LoadedModel, name: str) -> None:
    time = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    notes = 262 * 2 ** (np.random.default_rng(0).integers(0, 13, 16) / 12)
    sound = {
        "melody": np.sin(2 * np.pi * np.cumsum(notes.repeat(SAMPLE_RATE // 2)) / SAMPLE_RATE)
        * np.exp(-4 * (time % 0.5)),
        "drums": noise * np.exp(-30 * (time % 0.25)),
        "swelling noise": 0.3 * noise * (1 + np.sin(4 * np.pi * time)),
    }[name]
    waveform = (0.3 * sound).astype(np.float32)
    assert texts(nano, [waveform], 1) == [""]
    free = Transcriber(nano, decoding=DecodingConfig(guard_silence=False)).transcribe(waveform)
    assert free.text  # or there would be nothing to guard


def test_a_short_soft_word_is_not_taken_for_silence(nano: LoadedModel) -> None:
    for word, (spoken,) in spoken_words("en-us").items():
        result = Transcriber(nano).transcribe(spoken * np.float32(0.05))
        assert result.guards == (), word


def test_cached_and_computed_features_train_alike_on_its_frozen_parts(tmp_path: Path) -> None:
    """Equality 3; that such training helps at once is a test of the demo (`tests/cli/test_demo.py`)."""
    voices = split_voices().unseen
    for number, (split, count) in enumerate((("train", 8), ("dev", 4))):
        write_clips(tmp_path / "corpus", split, synthesized_clips(count, voices, seed=number))
    processed = tmp_path / "processed"
    process_corpus(ProcessConfig(tmp_path / "corpus", processed, "manifest", test_split=""))
    compute_features(FeaturesConfig(str(processed), speech_encoder="nano/encoder", device="cpu"))
    losses = []
    for name, features_dir in (("cached", str(processed / "features")), ("computed", "")):
        result = train(
            TrainConfig(
                str(processed),
                str(tmp_path / name),
                features_dir=features_dir,
                adapter_hidden_dim=64,
                batch_size=4,
                epochs=2,
                warmup_steps=1,
                warm_up="none",
                eval_steps=2,
                save_steps=4,
                num_workers=0,
                speech_encoder="nano/encoder",
                language_model="nano/language_model",
                device="cpu",
            )
        )
        state = json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())
        losses.append([entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry])
        assert result.steps == 4
    cached, computed = losses
    assert len(cached) == 2
    assert cached == pytest.approx(computed, rel=1e-2)
