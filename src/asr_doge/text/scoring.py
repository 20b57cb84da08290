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


def word_error_rate(reference: str, hypothesis: str) -> float:
    """WER of one utterance; an empty reference has as many errors as the hypothesis has words, over one."""
    return _rate(_word_errors(reference, hypothesis), len(reference.split()))


def character_error_rate(reference: str, hypothesis: str) -> float:
    """CER of one utterance; an empty reference as in `word_error_rate`."""
    return _rate(_character_errors(reference, hypothesis), len(reference))


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Score hypotheses against references, pair by pair.

    Raises:
        ValueError: no pairs, or not as many of the one as of the other.
    """
    if not references or len(references) != len(hypotheses):
        raise ValueError(f"cannot score {len(hypotheses)} hypotheses against {len(references)} references")
    pairs = list(zip(references, hypotheses, strict=True))
    word_errors = [_word_errors(*pair) for pair in pairs]
    character_errors = [_character_errors(*pair) for pair in pairs]
    words = [len(reference.split()) for reference in references]
    characters = [len(reference) for reference in references]
    return Scores(
        wer=_rate(sum(word_errors), sum(words)),
        cer=_rate(sum(character_errors), sum(characters)),
        wer_std=pstdev(map(_rate, word_errors, words)),
        cer_std=pstdev(map(_rate, character_errors, characters)),
        perfect_match_rate=fmean(reference.split() == hypothesis.split() for reference, hypothesis in pairs),
        num_samples=len(pairs),
    )


def _rate(errors: int, units: int) -> float:
    return errors / max(1, units)


def _word_errors(reference: str, hypothesis: str) -> int:
    if not reference.split():  # jiwer refuses an empty reference
        return len(hypothesis.split())
    alignment = jiwer.process_words(reference, hypothesis)
    return alignment.substitutions + alignment.deletions + alignment.insertions


def _character_errors(reference: str, hypothesis: str) -> int:
    if not reference:
        return len(hypothesis)
    alignment = jiwer.process_characters(reference, hypothesis)
    return alignment.substitutions + alignment.deletions + alignment.insertions
