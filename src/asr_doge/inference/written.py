"""Transcripts with case and punctuation, for `--text written`.

Promises: words, times, confidences and everything else stay as they are; only how each word is written changes. The
words of the whole recording are written together, so that a sentence may go on over a cut.
"""

from dataclasses import replace

from asr_doge.inference.results import FailedTranscription, Result, Segment
from asr_doge.models.punctuation import Punctuator


def written(result: Result, punctuator: Punctuator | None) -> Result:
    """A transcript with case and punctuation; its alternatives stay plain. Without a punctuator all of it does."""
    if punctuator is None or isinstance(result, FailedTranscription):
        return result
    each = [segment.text.split() for segment in result.segments]
    forms = iter(punctuator.write([word for words in each for word in words]))
    segments = tuple(
        _written(segment, [next(forms) for _ in words]) for segment, words in zip(result.segments, each, strict=True)
    )
    return replace(result, text=" ".join(segment.text for segment in segments if segment.text), segments=segments)


def _written(segment: Segment, forms: list[str]) -> Segment:
    # Words that were aligned are those of the text, unless some could not be.
    words = segment.words
    if [word.text for word in words] == segment.text.split():
        words = tuple(replace(word, text=form) for word, form in zip(words, forms, strict=True))
    return replace(segment, text=" ".join(forms), words=words)
