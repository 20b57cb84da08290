"""Transcripts that other programs read."""

import json
from pathlib import Path

from asr_doge.errors import AudioError
from asr_doge.inference.output import json_document, text_line
from asr_doge.inference.results import FailedTranscription, Transcription

SPOKEN = Transcription("it's “nine” o’clock", 1.23456, Path("a b.wav"))


def test_a_text_is_one_line() -> None:
    assert text_line(SPOKEN, show_path=False) == SPOKEN.text
    assert text_line(SPOKEN, show_path=True) == f"a b.wav\t{SPOKEN.text}"
    broken = Transcription("one\ntwo\r\u2028three", 1.0, Path("a.wav"))
    assert text_line(broken, show_path=True) == "a.wav\tone two three"


def test_json_holds_results_and_failures_in_order() -> None:
    failure = FailedTranscription(AudioError("b.wav is empty"), Path("b.wav"))
    document = json.loads(json_document([SPOKEN, failure, Transcription("", 2.0)], "nano"))
    assert document == {
        "version": 1,
        "model": "nano",
        "results": [
            {"path": "a b.wav", "duration": 1.235, "text": SPOKEN.text},
            {"path": "b.wav", "error": "b.wav is empty"},
            {"path": None, "duration": 2.0, "text": ""},
        ],
    }
