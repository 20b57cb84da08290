"""Word and character error rates of transcripts.

Promises: corpus rates count errors over all utterances; every pair counts, empty ones too. Distances are jiwer's.
It does not normalize: give it texts that went through one rule of `asr_doge.text.normalization`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import jiwer


@dataclass(frozen=True)
class Scores:
    """Error rates of a set of utterances, as fractions (0.05 is 5 %).

    Attributes:
        wer: word errors over reference words, of the whole set.
        cer: character errors over reference characters, of the whole set.
        wer_std: standard deviation of the utterances' own WERs.
        cer_std: the same of their CERs.
        perfect_match_rate: share of utterances without an error.
        num_samples: utterances.
    """

    wer: float
    cer: float
    wer_std: float
    cer_std: float
    perfect_match_rate: float
    num_samples: int


@dataclass(frozen=True)
class Edits:
    """The number of edits that turn a reference into a hypothesis.

    Attributes:
        substitutions, deletions, insertions: words (or characters) of each kind of error.
        units: words (or characters) of the reference.
    """

    substitutions: int
    deletions: int
    insertions: int
    units: int

    @property
    def errors(self) -> int:
        """Errors of every kind."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over units; an empty reference counts as one unit, so that invented words cost something."""
        return self.errors / max(1, self.units)


def word_edits(reference: str, hypothesis: str) -> Edits:
    """Word errors of one utterance."""
    if not reference.split():  # jiwer refuses an empty reference
        return Edits(0, 0, len(hypothesis.split()), 0)
    found = jiwer.process_words(reference, hypothesis)
    return Edits(found.substitutions, found.deletions, found.insertions, len(reference.split()))


def character_edits(reference: str, hypothesis: str) -> Edits:
    """Character errors of one utterance."""
    if not reference:
        return Edits(0, 0, len(hypothesis), 0)
    found = jiwer.process_characters(reference, hypothesis)
    return Edits(found.substitutions, found.deletions, found.insertions, len(reference))


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Score hypotheses against references, pair by pair.

    Raises:
        ValueError: no pairs, or not as many of the one as of the other.
    """
    if not references or len(references) != len(hypotheses):
        raise ValueError(f"cannot score {len(hypotheses)} hypotheses against {len(references)} references")
    pairs = list(zip(references, hypotheses, strict=True))
    return scores_of([word_edits(*pair) for pair in pairs], [character_edits(*pair) for pair in pairs])


def scores_of(words: Sequence[Edits], characters: Sequence[Edits]) -> Scores:
    """Error rates of utterances whose errors are counted already, at least one; a rate of each kind from each list."""
    return Scores(
        wer=corpus_rate(words),
        cer=corpus_rate(characters),
        wer_std=pstdev(edits.rate for edits in words),
        cer_std=pstdev(edits.rate for edits in characters),
        perfect_match_rate=fmean(edits.errors == 0 for edits in words),
        num_samples=len(words),
    )


def corpus_rate(edits: Sequence[Edits]) -> float:
    """Errors over units of the whole set; a set without units counts as one unit."""
    return sum(part.errors for part in edits) / max(1, sum(part.units for part in edits))
