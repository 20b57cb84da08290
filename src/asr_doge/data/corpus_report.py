"""Report what was kept and dropped of a corpus: figures for a terminal, and one HTML page with histograms.

Promises: the page is a single file that loads nothing from elsewhere, and the same corpus gives the same bytes. It
reads no recording: everything is in the utterances.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from asr_doge.data.corpora import Rejected
from asr_doge.data.manifest import Utterance

_EXAMPLES_SHOWN = 5
_BINS = 30


@dataclass(frozen=True)
class SplitReport:
    """Counts of kept and rejected recordings of one split."""

    role: str
    """`train`, `dev` or `test`."""
    split: str
    """The corpus's name for it."""
    manifest: Path
    durations: tuple[float, ...]
    """Durations of the kept utterances, in seconds."""
    text_lengths: tuple[int, ...]
    """Number of characters of each normalized transcript."""
    speakers: int
    """Number of speakers of the kept utterances; 0 if the corpus does not name them."""
    languages: tuple[str, ...]
    """The languages that the corpus names."""
    words: int
    """Number of words in all transcripts."""
    vocabulary: int
    """Number of different words."""
    characters: str
    """Different characters, in order."""
    unseen_share: float | None
    """Share of the words that do not occur in train; None if there is no train split."""
    dropped: dict[str, int]
    """Number of dropped recordings, by reason."""
    examples: tuple[str, ...]
    """The first few faulty recordings, one line each; exceeding a length limit is not a fault."""

    @classmethod
    def of(
        cls,
        role: str,
        split: str,
        manifest: Path,
        kept: Sequence[Utterance],
        rejected: Sequence[Rejected],
        train: Sequence[Utterance],
    ) -> "SplitReport":
        """Count what was kept and dropped of a split; `train` has the kept training utterances."""
        counts = Counter(word for utterance in kept for word in utterance.text.split())
        known = {word for utterance in train for word in utterance.text.split()}
        unseen = sum(count for word, count in counts.items() if word not in known)
        details = [fault.detail for fault in rejected if fault.detail]
        more = [f"and {len(details) - _EXAMPLES_SHOWN:,} more"] if len(details) > _EXAMPLES_SHOWN else []
        return cls(
            role=role,
            split=split,
            manifest=manifest,
            durations=tuple(utterance.duration for utterance in kept),
            text_lengths=tuple(len(utterance.text) for utterance in kept),
            speakers=len({utterance.speaker for utterance in kept if utterance.speaker}),
            languages=tuple(sorted({utterance.language for utterance in kept if utterance.language})),
            words=counts.total(),
            vocabulary=len(counts),
            characters="".join(sorted({character for word in counts for character in word})),
            unseen_share=unseen / counts.total() if known and counts else None,
            dropped=dict(sorted(Counter(fault.reason for fault in rejected).items())),
            examples=(*details[:_EXAMPLES_SHOWN], *more),
        )

    @property
    def kept(self) -> int:
        """Number of kept utterances."""
        return len(self.durations)

    @property
    def seconds(self) -> float:
        """Total duration of the kept utterances."""
        return math.fsum(self.durations)

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        speakers = f", {_counted(self.speakers, 'speaker')}" if self.speakers else ""
        unseen = f"; {self.unseen_share:.1%} of the words are not in train" if self.unseen_share else ""
        lines = [
            f"{self.role} ({self.split}): {_counted(self.kept, 'utterance')}, {self.seconds / 3600:.2f} h{speakers}"
            f" -> {self.manifest}",
            f"  {_counted(self.words, 'word')}, {self.vocabulary:,} different, of {len(self.characters)} characters"
            + unseen,
        ]
        lines += [f"  dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        return lines + [f"    {example}" for example in self.examples]


@dataclass(frozen=True)
class ProcessReport:
    """Result of `process_corpus`."""

    dataset: str
    splits: tuple[SplitReport, ...]
    warnings: tuple[str, ...]
    """Warnings about overlaps that make results look better, and limits that drop most of the corpus."""
    page: Path
    """The HTML page."""

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        kept, dropped = sum(s.kept for s in self.splits), sum(sum(s.dropped.values()) for s in self.splits)
        total = f"{_counted(kept, 'utterance')} kept, {dropped:,} dropped; report: {self.page}"
        return [
            *(line for split in self.splits for line in split.lines()),
            *(f"warning: {warning}" for warning in self.warnings),
            total,
        ]


def report_page(report: ProcessReport) -> str:
    """The report as one HTML page."""
    environment = Environment(
        loader=PackageLoader("asr_doge.data"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("corpus_report.html")
    return page.render(report=report, figures=_FIGURES, histogram_of=_histogram_of)


_FIGURES: dict[str, Callable[[SplitReport], str]] = {
    "split": lambda s: s.split,
    "utterances": lambda s: f"{s.kept:,}",
    "hours": lambda s: f"{s.seconds / 3600:.2f}",
    "shortest – median – longest, s": lambda s: " – ".join(f"{x:.1f}" for x in _spread(s.durations)),
    "speakers": lambda s: f"{s.speakers:,}" if s.speakers else "not named",
    "languages": lambda s: ", ".join(s.languages) or "not named",
    "words": lambda s: f"{s.words:,}",
    "different": lambda s: f"{s.vocabulary:,}",
    "not in train": lambda s: "–" if s.unseen_share is None else f"{s.unseen_share:.1%}",
    "dropped": lambda s: f"{sum(s.dropped.values()):,}",
}


@dataclass(frozen=True)
class _Histogram:
    """Counts by number of the bin, from 0; bins have the width `step`, and every `bins_per_tick`-th has a tick."""

    counts: dict[int, int]
    number: int
    step: float
    bins_per_tick: int


def _histogram_of(values: Sequence[float]) -> _Histogram:
    step = _round_step(max(values) / _BINS, whole=isinstance(values[0], int))
    counts = Counter(int(value / step) for value in values)
    number = max(counts) + 1
    return _Histogram(dict(sorted(counts.items())), number, step, int(_round_step(number / 8, whole=True)))


def _round_step(least: float, whole: bool) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`; at least 1 if `whole`."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-3)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
    return max(step, 1.0) if whole else step


def _spread(values: Iterable[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
