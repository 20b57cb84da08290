"""What is said of a recording beside its text."""

from pathlib import Path

import numpy as np
import pytest

from asr_doge.decoding.recognition import Recognition
from asr_doge.inference.chunking import Chunk
from asr_doge.inference.recordings import FEWEST_LABELS, Recording
from asr_doge.inference.results import Transcription


def _finished(probabilities: list[tuple[float, ...]], unsure_below: float | None) -> Transcription:
    """The transcript of a recording whose chunks have these label probabilities."""
    recording = Recording(Path("a/ta\nlk.wav"), "a/ta\nlk.wav", notes=["a/talk.wav: an odd file"])
    for index, labels in enumerate(probabilities):
        chunk = Chunk(np.zeros(16_000, dtype=np.float32), float(index), None)
        recording.add(index, chunk, Recognition("some words", label_probabilities=labels))
        recording.chunks += 1
    result = recording.finished(16_000, unsure_below)
    assert isinstance(result, Transcription)
    return result


def test_a_recording_that_the_model_is_unsure_of_gets_one_note() -> None:
    odd, unsure = _finished([(0.2,) * 10, (0.6,) * 10, ()], 0.5).notes
    assert odd == "a/talk.wav: an odd file"
    assert unsure.startswith("a/ta\\nlk.wav: the model is unsure of most of it (mean label probability 0.40")
    assert "another language" in unsure


@pytest.mark.parametrize(
    ("probabilities", "unsure_below"),
    [
        ([(0.2,) * 10, (0.9,) * 10], 0.5),  # the mean of all chunks counts
        ([(0.2,) * 20], None),  # a model for which no limit was measured
        ([(0.2,) * (FEWEST_LABELS - 1)], 0.5),
        ([()], 0.5),
    ],
)
def test_otherwise_nothing_is_said(probabilities: list[tuple[float, ...]], unsure_below: float | None) -> None:
    assert _finished(probabilities, unsure_below).notes == ("a/talk.wav: an odd file",)
