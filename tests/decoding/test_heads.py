"""Decoding with a trained CTC head, of characters or of pieces of words, and what is said where there is none."""

import math
from pathlib import Path

import pytest
import torch

from asr_doge.decoding import DecoderName, DecodingConfig
from asr_doge.decoding.confidence import Calibration
from asr_doge.decoding.ctc import cannot_spell
from asr_doge.decoding.decoders import EXTRA_TOKENS, TOKENS_PER_SECOND
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import CheckpointError, ConfigError
from asr_doge.inference.transcription import load
from asr_doge.models import LoadedModel, assemble_model, load_encoder_alone
from asr_doge.models.ctc_head import CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_vocabulary import LEAST_OCCURRENCES, CTCVocabulary
from tests.models import tiny

DECODERS: tuple[DecoderName, ...] = ("draft", "greedy", "ctc")
CLIPS = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.8, 2.1))]


def model_with(vocabulary: CTCVocabulary, whisper_folder: Path, doge_folder: Path) -> LoadedModel:
    """Tiny Whisper with a random head before a tiny Doge, in float64, where equal means equal."""
    loaded = assemble_model(
        whisper_folder, doge_folder, encoder_window="clip", device="cpu", dtype=torch.float64, adapter_stack=5
    )
    loaded.model.add_ctc_head(CTCHeadSettings(vocabulary.tokens, vocabulary.merges, "conformer", 2, 8, 1, 0.0))
    assert isinstance(loaded.model.encoder, HeadedEncoder)
    tiny.randomize(loaded.model.encoder.ctc_head, seed=5)
    tiny.randomize(loaded.model.adapter, seed=6)
    return loaded


VOCABULARIES = {
    "characters": CTCVocabulary(" abcdefghijklmnopqrstuvwxyz'"),
    "bpe": CTCVocabulary.of_pieces(tiny.SENTENCES * LEAST_OCCURRENCES, 60),
}


@pytest.mark.parametrize("units", ["characters", "bpe"])
def test_a_headed_model_verifies_its_draft_and_times_its_words(
    whisper_folder: Path, doge_folder: Path, units: str
) -> None:
    loaded = model_with(VOCABULARIES[units], whisper_folder, doge_folder)
    found = {
        decoder: Recognizer(loaded, DecodingConfig(decoder=decoder, timestamps="word", guard_silence=False)).recognize(
            CLIPS
        )
        for decoder in ("draft", "greedy", "ctc")
    }
    assert [one.text for one in found["draft"]] == [one.text for one in found["greedy"]]
    for clip, recognition in zip(CLIPS, found["ctc"], strict=True):
        assert recognition.text.split() == [word.text for word in recognition.words]
        assert len(recognition.words) > 1
        times = [moment for word in recognition.words for moment in (word.start, word.end)]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= len(clip) / 16_000
    draft = [word for recognition in found["draft"] for word in recognition.words]
    assert all(word.log_posterior is not None for word in draft if word.text.isalpha() and word.text.isascii())


def test_words_of_few_long_labels_are_spelled(whisper_folder: Path, doge_folder: Path) -> None:
    """Else their text counts as one in another script, whose words are spread evenly over the clip."""
    text = tiny.SENTENCES[0]
    vocabulary = CTCVocabulary.of_pieces([text] * LEAST_OCCURRENCES, 500)
    encoder = model_with(vocabulary, whisper_folder, doge_folder).model.encoder
    assert len(vocabulary.ids(text)) < sum(map(str.isalnum, text)) / 2
    assert not cannot_spell(encoder, text)
    assert cannot_spell(encoder, "\u0441\u0435\u043c\u044c")


@pytest.mark.parametrize("units", ["characters", "bpe"])
def test_hotwords_are_spotted(whisper_folder: Path, doge_folder: Path, tmp_path: Path, units: str) -> None:
    (tmp_path / "words.txt").write_text("fox\n")
    settings = DecodingConfig(
        decoder="ctc", hotwords=str(tmp_path / "words.txt"), hotword_weight=1e6, guard_silence=False
    )
    loaded = model_with(VOCABULARIES[units], whisper_folder, doge_folder)
    alone = Recognizer(loaded, settings).recognize(CLIPS)
    assert all("fox" in recognition.text.split() for recognition in alone)


def test_without_a_head_a_text_is_as_long_as_its_clip_allows(whisper_folder: Path, doge_folder: Path) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu", dtype=torch.float64, adapter_stack=5)
    tiny.randomize(loaded.model.adapter, seed=6)
    loaded.model.generation_config.max_new_tokens = 64
    loaded.model.generation_config.eos_token_id = loaded.model.config.text_config.vocab_size - 1  # hardly ever written
    recognizer = Recognizer(loaded, DecodingConfig(guard_silence=False, guard_loops=False))
    for clip in CLIPS:
        (recognition,) = recognizer.recognize([clip])
        seconds = math.ceil(len(clip) / 160) / 100  # Whisper's frames
        most = EXTRA_TOKENS + math.ceil(TOKENS_PER_SECOND * math.ceil(seconds * 50) / 50)
        assert recognition.passes == min(64, most)
        assert ("length" in recognition.guards) == (most < 64)
    free = Recognizer(loaded, DecodingConfig(guard_silence=False, guard_length=False))
    assert free.recognize([CLIPS[0]])[0].passes == 64


def test_a_checkpoints_own_calibration_is_used(whisper_folder: Path, doge_folder: Path) -> None:
    loaded = model_with(VOCABULARIES["characters"], whisper_folder, doge_folder)
    loaded.model.config.calibration = {"intercept": -1.5, "ctc": 0.0, "language_model": 0.0}
    recognizer = Recognizer(loaded, DecodingConfig(timestamps="word", guard_silence=False))
    assert recognizer.calibration == Calibration(-1.5, 0.0, 0.0)
    words = [word for recognition in recognizer.recognize(CLIPS) for word in recognition.words]
    expected = 1 / (1 + math.exp(1.5))
    assert words
    assert all(word.confidence == pytest.approx(expected) for word in words)


def test_a_bare_encoder_is_not_sent_in_a_circle(whisper_folder: Path, granite_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without a CTC head, .*asr-doge pretrain ctc_head --speech_encoder"):
        load(whisper_folder, device="cpu")
    with pytest.raises(ConfigError, match=r"needs a CTC head, which this encoder lacks: train one: asr-doge pretrain"):
        load(whisper_folder, device="cpu", decoding=DecodingConfig(decoder="ctc"))
    with pytest.raises(CheckpointError, match="for the text of its CTC head, --decoder ctc"):
        load(granite_folder, device="cpu")
    (tmp_path / "words.txt").write_text("fox\n")
    decoding, bare = DecodingConfig(hotwords=str(tmp_path / "words.txt")), load_encoder_alone(whisper_folder)
    with pytest.raises(ConfigError, match="--decoder ctc needs a CTC head"):
        Recognizer(bare, decoding)


def test_hotwords_without_a_head_say_how_to_train_one(whisper_folder: Path, doge_folder: Path, tmp_path: Path) -> None:
    loaded = assemble_model(whisper_folder, doge_folder, device="cpu", adapter_stack=5)
    (tmp_path / "words.txt").write_text("fox\n")
    with pytest.raises(ConfigError, match="--hotwords needs a CTC head, which this encoder lacks: train one"):
        Recognizer(loaded, DecodingConfig(hotwords=str(tmp_path / "words.txt")))
