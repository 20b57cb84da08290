"""Compute the confidence of a word: a probability from the scores of the CTC head and the language model.

Promises: a confidence in [0, 1] that rises with both scores.
It does not know how the words were found, nor how far confidences are from the share of words that are right, which
`bench/confidence.py` measures.
"""

import math
from dataclasses import dataclass


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
