"""The bundled english: what lies in the package is small, whole and points to an encoder that is fetched; without a
network that is said in one line. With the encoder on this machine, it hears a synthesized sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.synthesis import Voice, synthesize
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.errors import CheckpointError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import load_model
from asr_doge.models.checkpoints import BUNDLED_MODELS, find_model, load_model_config, load_tokenizer
from asr_doge.models.fetching import local_folder
from asr_doge.models.language_model import load_language_model
from asr_doge.models.punctuation import load_punctuator
from asr_doge.text.normalization import normalize_training_text
from tests.models.hub_server import Hub

ENGLISH = BUNDLED_MODELS["english"]
ENCODER = "openai/whisper-base"


def test_the_bundle_is_small_and_points_to_its_encoder() -> None:
    size = sum(path.stat().st_size for path in ENGLISH.rglob("*") if path.is_file())
    config = json.loads((ENGLISH / "config.json").read_text())
    assert size < 30_000_000
    assert config["speech_encoder"] == ENCODER
    assert config["language_model"] == "english/language_model"
    assert config["default_decoder"] == "fusion"
    assert config["encoder_config"]["encoder_window"] == "clip"


def test_its_language_model_prefers_english() -> None:
    reference = find_model("english/language_model")
    model = load_language_model(reference, load_model_config(reference), torch.float32).eval()
    tokenizer = load_tokenizer(reference)

    def loss(text: str) -> float:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    sentence = "he had been in the house for some time and she was very glad of it"
    words = sentence.split()
    shuffled = " ".join(words[place] for place in np.random.default_rng(0).permutation(len(words)))
    assert loss(sentence) < loss(shuffled) - 0.5


def test_its_punctuation_fits_what_a_reader_expects() -> None:
    punctuator = load_punctuator(find_model("english"))
    text = "mr smith said that it was late in london he had been there all day long"
    assert " ".join(punctuator.write(text.split())).startswith("Mr. Smith said that it was late in London")
    assert punctuator.write(["where", "are", "you"]) == ["Where", "are", "you?"]


def test_without_network_and_encoder_both_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub({}).connect(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("ASR_DOGE_CACHE", str(tmp_path / "user"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError) as caught:
        load_model("english", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert f"asr-doge download model {ENCODER}" in message
    assert "--model nano" in message


with_encoder = pytest.mark.skipif(local_folder(ENCODER) is None, reason="its encoder is not on this machine")


@with_encoder
def test_it_hears_a_sentence() -> None:
    transcriber = Transcriber(load_model("english", device="cpu"), decoding=DecodingConfig(timestamps="word"))
    silence = np.zeros(SAMPLE_RATE // 2, dtype=np.float32)
    waveform = np.concatenate([silence, synthesize("Nothing was said about the money.", Voice("en-us")), silence])
    (result,) = transcriber.transcribe([waveform])
    heard = set(result.text.split())
    assert len(heard & {"nothing", "was", "said", "about", "the", "money"}) >= 3
    starts = [word.start for segment in result.segments for word in segment.words]
    assert starts == sorted(starts)
    transcriber.punctuator = load_punctuator(find_model("english"))
    (readable,) = transcriber.transcribe([waveform])
    assert normalize_training_text(readable.text) == result.text
    assert readable.text[0].isupper()


@with_encoder
def test_it_says_that_it_is_unsure_of_another_language() -> None:
    german = "Gestern bin ich mit dem Zug nach München gefahren und habe meine Schwester besucht."
    english = "Yesterday evening we had dinner with the whole family at the house of my parents."
    spoken = [synthesize(german, Voice("de")), synthesize(english, Voice("en-us"))]
    other, known = Transcriber(load_model("english", device="cpu")).transcribe(spoken)
    assert ["another language" in note for note in other.notes] == [True]
    assert not known.notes


@with_encoder
def test_a_siren_says_nothing() -> None:
    """A sweep between 500 and 1,100 Hz every two seconds, as many sirens have."""
    time = np.arange(30 * SAMPLE_RATE) / SAMPLE_RATE
    siren = (0.3 * np.sin(2 * np.pi * (800 * time - 300 * np.cos(np.pi * time)))).astype(np.float32)
    (result,) = Transcriber(load_model("english", device="cpu")).transcribe([siren])
    assert result.text == ""


@with_encoder
def test_words_are_timed_where_they_are_spoken() -> None:
    """The truth is where each synthesized word was put; its head marks the beginnings of words."""
    words = ["seven", "nine", "four"]
    sounds = [synthesize(word, Voice("en-us")) for word in words]
    pause = np.zeros(SAMPLE_RATE // 3, dtype=np.float32)
    waveform = np.concatenate([part for sound in sounds for part in (pause, sound)] + [pause])
    transcriber = Transcriber(load_model("english", device="cpu"), decoding=DecodingConfig(timestamps="word"))
    found = [word for segment in transcriber.transcribe(waveform).segments for word in segment.words]
    assert [word.text for word in found] == words
    place = 0
    for word, sound in zip(found, sounds, strict=True):
        place += len(pause)
        loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
        assert word.start == pytest.approx((place + loud[0]) / SAMPLE_RATE, abs=0.1)
        assert word.end == pytest.approx((place + loud[-1]) / SAMPLE_RATE, abs=0.1)
        place += len(sound)
