"""A CTC head that writes pieces of words has word times and hotwords as one that writes letters."""

import numpy as np
import pytest
from numpy.typing import NDArray

from asr_doge.decoding.alignment import align_words
from asr_doge.decoding.hotwords import insert_hotwords, spot_hotwords
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings, HeadedEncoder
from asr_doge.models.encoders.whisper import WhisperSpeechEncoder
from tests.models import tiny

TOKENS = ["▁", "a", "c", "t", "d", "o", "g", "▁c", "▁ca", "▁cat", "▁d", "▁do", "▁dog"]
MERGES = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "d"), ("▁d", "o"), ("▁do", "g")]
RATE, FRAME_SECONDS = 16_000, 0.04


@pytest.fixture(scope="module")
def encoder() -> HeadedEncoder:
    family = WhisperSpeechEncoder(tiny.whisper_model().config)
    settings = CTCHeadSettings(TOKENS, MERGES, type="linear", stack=2)
    return HeadedEncoder(family, CTCHead(settings, family.hidden_size))


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
    noise = np.random.default_rng(0).standard_normal(int(len(path) * FRAME_SECONDS * RATE)).astype(np.float32)
    spoken = np.isin(np.arange(len(path)), (1, 2, 3, 6, 7, 8, 9)).repeat(int(FRAME_SECONDS * RATE))
    cat, dog = align_words(encoder, _posteriors(path), ["cat", "doga"], noise * spoken, RATE)
    assert (cat.start, cat.end) == pytest.approx((0.04, 0.16), abs=0.02)
    assert (dog.start, dog.end) == pytest.approx((0.24, 0.40), abs=0.02)


def test_a_piece_nearly_heard_is_a_hotword_by_its_weight(encoder: HeadedEncoder) -> None:
    row = _posteriors([None, "▁cat", None, "▁cat", None], {3: "▁dog"})
    assert spot_hotwords(encoder, row, ["dog"], 0.1) == []
    spotted = spot_hotwords(encoder, row, ["dog"], 1.0)  # costs ln 2, and is worth 3 letters
    assert [hotword.text for hotword in spotted] == ["dog"]
    assert spotted[0].gain == pytest.approx(3 - np.log(2), abs=0.01)
    assert insert_hotwords(encoder, row, spotted)[0] == "cat dog"
