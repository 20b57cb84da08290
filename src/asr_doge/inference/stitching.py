"""Join the transcripts of overlapping chunks of a recording.

Promises: a word that two neighbours both have is kept once, and no word outside their overlap is dropped; words do not
overlap, and none loses all of its time to the one before. Two words are the same if they are spelled alike at the same
time; such words decide where to join only if they are at least half of the words in the overlap. If word times are not
known, they are estimated from the number of characters; where one word is said again and again, the joint may then be
wrong by a word.
It knows no models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from asr_doge.inference.results import Segment, Word

Span = tuple[float, float]
"""Start and end, in seconds of the recording."""

SAME_TIME = 0.4
"""Seconds by which the middle of a word may differ between two alignments; about the length of a short word."""
SAME_TIME_ESTIMATED = 1.0
"""As `SAME_TIME`, for estimated times: how much a speaker's pace may shift a word within the 1.5 s of an overlap."""
CUT_OFF_WORDS = 0.25
"""Share of a word that the text lacks at an edge that cuts through it, on average, for estimated times: models write
the whole word, a part or nothing."""


@dataclass(frozen=True)
class ChunkTranscript:
    """The transcript of a chunk of a recording.

    Attributes:
        segment: its text.
        times: start and end of each word of the text; empty if they are not known.
        overlap: the overlap with the chunk before, if there is one.
    """

    segment: Segment
    times: tuple[Span, ...] = ()
    overlap: Span | None = None


def stitch(transcripts: Sequence[ChunkTranscript]) -> list[Segment]:
    """Join the texts of chunks: words that two neighbours share are kept once, and segments without text are left out.

    If one of two neighbours has no text, the other is unchanged.
    """
    stitched: list[ChunkTranscript] = []
    for transcript in transcripts:
        if stitched and transcript.overlap is not None and stitched[-1].segment.text and transcript.segment.text:
            stitched[-1], transcript = _join(stitched[-1], transcript, transcript.overlap)
        stitched.append(transcript)
    return [transcript.segment for transcript in stitched if transcript.segment.text]


def common_prefix_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of leading words that both have in common."""
    return next((count for count, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _join(first: ChunkTranscript, second: ChunkTranscript, overlap: Span) -> tuple[ChunkTranscript, ChunkTranscript]:
    """Two overlapping neighbours without duplicate words; a segment that lost words loses its alternatives too."""
    heard, again = first.segment.text.split(), second.segment.text.split()
    kept, dropped = _where_to_join(first, second, overlap)
    start, end = overlap
    middle = (start + end) / 2
    times, later = _in_order(first.times[:kept], second.times[dropped:])
    ends = times[-1][1] if times else max(min(middle, first.segment.end), first.segment.start)
    begins = max(later[0][0], ends) if later else min(max(middle, ends), max(second.segment.end, ends))
    before = replace(
        first.segment,
        text=" ".join(heard[:kept]),
        end=ends,
        words=_timed(first.segment.words[:kept], times),
        alternatives=first.segment.alternatives if kept == len(heard) else (),
    )
    after = replace(
        second.segment,
        text=" ".join(again[dropped:]),
        start=begins,
        end=max(second.segment.end, begins),
        words=_timed(second.segment.words[dropped:], later),
        alternatives=() if dropped else second.segment.alternatives,
    )
    return replace(first, segment=before, times=times), replace(second, segment=after, times=later)


def _in_order(times: tuple[Span, ...], later: tuple[Span, ...]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Times of the words that are kept of the first and of the second, so that none overlap.

    By its own times, a word of the second may be over before the last one of the first: such words share its time.
    """
    if not times or not later:
        return times, later
    start, end = times[-1]
    covered = sum(stop <= end for _, stop in later)
    edges = [start, *(start + (end - start) * number / (covered + 1) for number in range(1, covered + 1)), end]
    shares = list(pairwise(edges))
    rest = [(max(begin, end), stop) for begin, stop in later[covered:]]
    return (*times[:-1], shares[0]), (*shares[1:], *rest)


def _timed(words: tuple[Word, ...], times: tuple[Span, ...]) -> tuple[Word, ...]:
    """Words, if they were requested, at these times, which then are known."""
    return tuple(replace(word, start=start, end=end) for word, (start, end) in zip(words, times, strict=bool(words)))


def _where_to_join(first: ChunkTranscript, second: ChunkTranscript, overlap: Span) -> tuple[int, int]:
    """The number of words of the first to keep, and of the second to drop."""
    is_measured = bool(first.times and second.times)
    tolerance = SAME_TIME if is_measured else SAME_TIME_ESTIMATED
    ours, theirs = _word_times(first, is_cut_after=True), _word_times(second)
    heard, again = first.segment.text.split(), second.segment.text.split()
    start, end = overlap
    before = next((index for index, (_, stop) in enumerate(ours) if stop > start), len(ours))
    within = next((index for index, (begin, _) in enumerate(theirs) if begin >= end), len(theirs))

    def closeness(index: int, other: int) -> float:
        """Positive for the same word at the same time.

        With estimated times, words that extend beyond the overlap count less. Otherwise, if a word is repeated, an
        alignment that is shifted by one word could win because it has one more pair.
        """
        span, same = ours[before + index], theirs[other]
        apart = abs(_middle(span) - _middle(same))
        if heard[before + index] != again[other] or apart >= tolerance:
            return 0.0
        if is_measured:
            return 2 - apart / tolerance
        return _inside(span, overlap) + _inside(same, overlap) - 2 * apart / tolerance

    pairs = _most_pairs(len(ours) - before, within, closeness)
    if pairs and 2 * len(pairs) >= min(len(ours) - before, within):
        middle = (start + end) / 2
        index, other = min(pairs, key=lambda pair: abs(_middle(ours[before + pair[0]]) - middle))
        return before + index + 1, other + 1
    return _cut_in_time(ours, theirs, (start + end) / 2) if is_measured else (len(ours), 0)


def _cut_in_time(ours: Sequence[Span], theirs: Sequence[Span], moment: float) -> tuple[int, int]:
    """`_where_to_join` for texts that disagree: each supplies the words on its side of one moment.

    Nothing is cut off if only one of the two has words.
    """
    if theirs[0][0] > moment:
        moment = theirs[0][0]
    elif ours[-1][1] < moment:
        moment = ours[-1][1]
    kept = sum(_middle(span) <= moment for span in ours)
    dropped = sum(_middle(span) <= moment for span in theirs)
    if kept < len(ours) and dropped and _coincide(ours[kept], theirs[dropped - 1]):
        kept += 1  # one word that both would have dropped
    elif kept and dropped < len(theirs) and _coincide(ours[kept - 1], theirs[dropped]):
        dropped += 1  # one word that both would have kept
    return kept, dropped


def _most_pairs(count: int, others: int, closeness: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """The pairs, in order on both sides, with the largest sum of closeness."""
    rows: list[list[tuple[float, list[tuple[int, int]]]]] = [[(0.0, [])] * (others + 1)]
    for index in range(count):
        row: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
        for other in range(others):
            best = max(rows[-1][other + 1], row[other], key=lambda found: found[0])
            close = closeness(index, other)
            if close > 0 and rows[-1][other][0] + close > best[0]:
                best = rows[-1][other][0] + close, [*rows[-1][other][1], (index, other)]
            row.append(best)
        rows.append(row)
    return rows[-1][-1][1]


def _word_times(transcript: ChunkTranscript, is_cut_after: bool = False) -> Sequence[Span]:
    """Times of each word; if they are not known, every character gets the same duration.

    Args:
        transcript: of a chunk with words.
        is_cut_after: whether the next chunk overlaps it.
    """
    if transcript.times:
        return transcript.times
    words = transcript.segment.text.split()
    ends = list(accumulate(len(word) + 1 for word in words))
    cut_off = CUT_OFF_WORDS * ends[-1] / len(words)  # in characters
    before, after = cut_off * (transcript.overlap is not None), cut_off * is_cut_after
    second = (transcript.segment.end - transcript.segment.start) / (before + ends[-1] - 1 + after)
    begin = transcript.segment.start + before * second
    return [
        (begin + second * (end - len(word) - 1), begin + second * (end - 1))
        for word, end in zip(words, ends, strict=True)
    ]


def _middle(span: Span) -> float:
    return (span[0] + span[1]) / 2


def _inside(span: Span, overlap: Span) -> float:
    """Share of a word that lies within the overlap."""
    both = min(span[1], overlap[1]) - max(span[0], overlap[0])
    return max(both, 0.0) / max(span[1] - span[0], 1e-9)


def _coincide(span: Span, other: Span) -> bool:
    """Whether two words overlap in time for more than half of the shorter one."""
    both = min(span[1], other[1]) - max(span[0], other[0])
    return 2 * both > min(span[1] - span[0], other[1] - other[0])
