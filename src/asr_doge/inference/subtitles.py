"""Format transcripts as subtitles that can be read while they are shown.

Promises: cues have at most two lines of 42 characters and last at most 7 seconds; they are in order, never two at a
time, and last at least one second unless the next follows sooner; a cue ends where a segment does, and every word is in
exactly one. If word times are unknown, a segment's time is divided among its words by their number of characters.
It does not know the files that cues are written to. It counts characters, not their width, and ignores grammar.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from asr_doge.inference.results import Segment, Word

MAX_LINE_CHARACTERS = 42
MAX_SECONDS = 7.0
MIN_SECONDS = 1.0
MAX_PAUSE_SECONDS = 1.0
"""A longer silence between two words separates them into two cues."""
FLASH_SECONDS = 0.04
"""Shortest possible cue: one frame of a film."""


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds: one or two lines of words."""

    start: float
    end: float
    lines: tuple[tuple[Word, ...], ...]


def timed_words(segment: Segment) -> tuple[Word, ...]:
    """The words of a segment; without times of their own they share its time by their number of characters."""
    if segment.words:
        return segment.words
    texts = segment.text.split()
    characters = sum(map(len, texts))
    words = []
    start = segment.start
    for text in texts:
        end = start + (segment.end - segment.start) * len(text) / characters
        words.append(Word(text, start, end))
        start = end
    return tuple(words)


def subtitle_cues(segments: Iterable[Segment]) -> list[Cue]:
    """The cues of a transcript, in order."""
    groups = [group for segment in segments for group in _groups(_short_words(timed_words(segment)))]
    cues: list[Cue] = []
    free_from = 0.0
    for group, following in zip_longest(groups, groups[1:]):
        start = max(group[0].start, free_from)
        end = min(max(group[-1].end, start + MIN_SECONDS), start + MAX_SECONDS)
        if following is not None:
            end = max(min(end, following[0].start), start + FLASH_SECONDS)
        cues.append(Cue(start, end, _lines(group) or (tuple(group),)))
        free_from = end
    return cues


def _groups(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Words shown together: as many as fit into two lines and the longest duration."""
    group: list[Word] = []
    for word in words:
        is_late = group and (word.start - group[-1].end > MAX_PAUSE_SECONDS or word.end - group[0].start > MAX_SECONDS)
        if group and (is_late or _lines([*group, word]) is None):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _short_words(words: Iterable[Word]) -> Iterator[Word]:
    """Words that fit into a line: a longer one (for example of a script without spaces) is cut and its time divided."""
    for word in words:
        pieces = [word.text[i : i + MAX_LINE_CHARACTERS] for i in range(0, len(word.text), MAX_LINE_CHARACTERS)]
        start = word.start
        for piece in pieces:
            end = start + (word.end - word.start) * len(piece) / len(word.text)
            yield Word(piece, start, end, word.confidence)
            start = end


def _lines(words: Sequence[Word]) -> tuple[tuple[Word, ...], ...] | None:
    """Words in one line, or in the two lines that differ least in length; None if they do not fit."""
    if _width(words) <= MAX_LINE_CHARACTERS:
        return (tuple(words),)
    pairs = [(words[:index], words[index:]) for index in range(1, len(words))]
    fitting = [pair for pair in pairs if max(map(_width, pair)) <= MAX_LINE_CHARACTERS]
    if not fitting:
        return None
    first, second = min(fitting, key=lambda pair: abs(_width(pair[0]) - _width(pair[1])))
    return tuple(first), tuple(second)


def _width(words: Sequence[Word]) -> int:
    """Characters of a line."""
    return sum(len(word.text) + 1 for word in words) - 1
