"""Compute the confidence of a word: a probability from the scores of the CTC head and the language model.

Promises: a confidence in [0, 1] that rises with both scores; `expected_calibration_error` measures how far confidences
are from the share of words that are right.
It does not know how the words were found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """A logistic regression on the two log-probabilities, fitted by `bench/confidence.py`.

    Attributes:
        intercept: the logit of a word of which both are certain.
        ctc: weight of the mean log-posterior of its characters.
        language_model: weight of the log-probability of its tokens.
    """

    intercept: float
    ctc: float
    language_model: float

    def __call__(self, ctc: float | None, language_model: float | None) -> float:
        """Probability that a word is right; pass None for a score that is not available."""
        evidence = self.intercept + self.ctc * (ctc or 0.0) + self.language_model * (language_model or 0.0)
        return 1 / (1 + math.exp(-max(evidence, -50.0)))


CALIBRATION = Calibration(intercept=4.24, ctc=0.17, language_model=6.19)
"""Fitted on nano and spoken digits; another model may be more or less confident (see docs/decoding.md)."""


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 10) -> float:
    """Mean distance between confidence and share of right words, over `bins` equal intervals of confidence.

    Args:
        confidences: of each word, in [0, 1].
        correct: whether it is right.
        bins: intervals.
    """
    values, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    places = np.minimum((values * bins).astype(int), bins - 1)
    gaps = [abs(values[places == b].sum() - right[places == b].sum()) for b in range(bins)]
    return float(sum(gaps) / max(len(values), 1))
