"""Case and punctuation change how words are written, and nothing else."""

from dataclasses import replace

from asr_doge.inference.results import Alternative, Segment, Transcription, Word
from asr_doge.inference.written import written
from asr_doge.models.punctuation import Punctuator

FORMS = {"it": "It", "was": "was", "i": "I.", "mr": "Mr.", "fox": "Fox?"}


class _Known(Punctuator):
    """Writes words as `FORMS` says."""

    def __init__(self) -> None:
        """There is no model."""

    def write(self, words: list[str]) -> list[str]:  # type: ignore[override]
        self.read = words
        return [FORMS[word] for word in words]


def test_only_the_writing_changes_and_the_whole_text_is_read_at_once() -> None:
    words = (Word("it", 0.5, 0.7, 0.9), Word("was", 0.7, 0.9, 0.8), Word("i", 1.0, 1.1, 0.7))
    plain = Transcription(
        "it was i mr fox",
        4.0,
        segments=(
            Segment("it was i", 0.5, 1.1, words, (Alternative("it was i", -1.0),)),
            Segment("", 1.5, 2.0),
            Segment("mr fox", 2.5, 3.0, (Word("fox", 2.8, 3.0),)),  # one word could not be aligned
        ),
        notes=("a note",),
    )
    punctuator = _Known()
    result = written(plain, punctuator)
    assert punctuator.read == ["it", "was", "i", "mr", "fox"]
    assert result == replace(
        plain,
        text="It was I. Mr. Fox?",
        segments=(
            Segment(
                "It was I.",
                0.5,
                1.1,
                tuple(replace(word, text=FORMS[word.text]) for word in words),
                (Alternative("it was i", -1.0),),
            ),
            plain.segments[1],
            replace(plain.segments[2], text="Mr. Fox?"),
        ),
    )
