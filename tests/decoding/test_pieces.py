"""A CTC head that writes pieces of words has word times and hotwords as one that writes letters."""

import numpy as np
import pytest
from numpy.typing import NDArray

from asr_doge.decoding.alignment import align_words
from asr_doge.decoding.hotwords import insert_hotwords, spot_hotwords
from asr_doge.errors import ConfigError
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings, HeadedEncoder
from asr_doge.models.encoders.whisper import WhisperSpeechEncoder
from tests.models import tiny

TOKENS = ["▁", "a", "c", "t", "d", "o", "g", "▁c", "▁ca", "▁cat", "▁d", "▁do", "▁dog"]
MERGES = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "d"), ("▁d", "o"), ("▁do", "g")]
RATE, FRAME_SECONDS = 16_000, 0.04


@pytest.fixture(scope="module")
def encoder() -> HeadedEncoder:
    return _headed(None)


def _headed(first_label_delay: float | None) -> HeadedEncoder:
    family = WhisperSpeechEncoder(tiny.whisper_model().config)
    settings = CTCHeadSettings(TOKENS, MERGES, type="linear", stack=2, first_label_delay=first_label_delay)
    return HeadedEncoder(family, CTCHead(settings, family.hidden_size))


def _sound(spoken: list[int]) -> NDArray[np.float32]:
    """Noise in the frames that are 1, silence in the others."""
    loud = np.array(spoken).repeat(int(FRAME_SECONDS * RATE))
    noise = np.random.default_rng(0).standard_normal(len(loud)).astype(np.float32)
    return noise * loud.astype(np.float32)


def _posteriors(path: list[str | None], second: dict[int, str] | None = None) -> NDArray[np.float32]:
    """Sure of one piece a frame (None: the blank); `second` has half of some frames' probability."""
    rows = np.full((len(path), 1 + len(TOKENS)), 1e-4)
    for place, piece in enumerate(path):
        rows[place, 0 if piece is None else 1 + TOKENS.index(piece)] = 1.0
    for place, piece in (second or {}).items():
        rows[place, 1 + TOKENS.index(piece)] = 0.5
    return np.log(rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)


def test_words_stand_at_their_pieces(encoder: HeadedEncoder) -> None:
    path: list[str | None] = [None, None, "▁cat", None, None, None, None, "▁do", "g", "a", None, None]
    sound = _sound([0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0])
    cat, dog = align_words(encoder, _posteriors(path), ["cat", "doga"], sound, RATE)
    assert (cat.start, cat.end) == pytest.approx((0.04, 0.16), abs=0.02)
    assert (dog.start, dog.end) == pytest.approx((0.24, 0.40), abs=0.02)


def test_a_piece_nearly_heard_is_a_hotword_by_its_weight(encoder: HeadedEncoder) -> None:
    row = _posteriors([None, "▁cat", None, "▁cat", None], {3: "▁dog"})
    assert spot_hotwords(encoder, row, ["dog"], 0.1) == []
    spotted = spot_hotwords(encoder, row, ["dog"], 1.0)  # costs ln 2, and is worth 3 letters
    assert [hotword.text for hotword in spotted] == ["dog"]
    assert spotted[0].gain == pytest.approx(3 - np.log(2), abs=0.01)
    assert insert_hotwords(encoder, row, spotted)[0] == "cat dog"


def test_a_head_that_marks_beginnings_has_its_words_there() -> None:
    """Each word's only label is 0.08 s after the word begins, long before it ends; truth in frames of 0.04 s."""
    encoder = _headed(first_label_delay=0.08)
    path: list[str | None] = [None] * 30
    for begins, piece in ((2, "▁cat"), (13, "▁dog"), (20, "▁cat")):
        path[begins + 2] = piece
    with_a_pause = _sound([0] * 2 + [1] * 8 + [0] * 3 + [1] * 14 + [0] * 3)
    words = align_words(encoder, _posteriors(path), ["cat", "dog", "cat"], with_a_pause, RATE)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == pytest.approx([frame * FRAME_SECONDS for frame in (2, 10, 13, 20, 20, 27)], abs=0.02)


def test_its_last_word_is_not_cut_short_where_no_silence_ends_the_clip() -> None:
    path: list[str | None] = [None, None, "▁cat", *[None] * 7]
    (cat,) = align_words(_headed(first_label_delay=0.08), _posteriors(path), ["cat"], _sound([1] * 10), RATE)
    assert (cat.start, cat.end) == pytest.approx((0.0, 0.4), abs=0.02)


@pytest.mark.parametrize("delay", [0.08, 0.3])
def test_words_of_unbroken_speech_begin_the_delay_before_their_labels(delay: float) -> None:
    """In noise without a pause; the last word ends 0.4 s after its label, though the noise goes on."""
    path: list[str | None] = [None] * 50
    begins = [0.4, 0.8, 1.2]
    for begin, piece in zip(begins, ("▁cat", "▁dog", "▁cat"), strict=True):
        path[round((begin + delay) / FRAME_SECONDS)] = piece
    words = align_words(_headed(delay), _posteriors(path), ["cat", "dog", "cat"], _sound([1] * 50), RATE)
    assert [word.start for word in words] == pytest.approx(begins, abs=0.03)
    assert [word.end for word in words] == pytest.approx([0.8, 1.2, 1.2 + delay + 0.44], abs=0.03)


@pytest.mark.parametrize("delay", [-0.1, 1.5, True, "soon"])
def test_a_delay_that_cannot_be_is_refused(delay: float) -> None:
    with pytest.raises(ConfigError, match="first_label_delay"):
        CTCHeadSettings.read({"tokens": TOKENS, "first_label_delay": delay})
