"""Transcripts: the rule that normalizes training texts, and named rules for scoring.

Promises: plain functions from text to text that need no model and no network. It knows nothing of audio, corpora or
tokenizers.
"""

from asr_doge.text.normalization import SCORING_RULES, ScoringRule, normalize_for_scoring, normalize_training_text

__all__ = ["SCORING_RULES", "ScoringRule", "normalize_for_scoring", "normalize_training_text"]
