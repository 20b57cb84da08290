"""Score the texts generated in an evaluation: rates, and each text beside its reference.

Promises: rates are those of the whole set, and of each language if there are several. They equal those of
`asr-doge benchmark` for the same utterances: recordings read whole, texts by greedy search without guards, scored by
the published rule. The hypotheses of the last evaluation are kept, worst first. It does not generate texts (the Trainer
does).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import EvalPrediction

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError
from asr_doge.models import ASRDogeProcessor
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import character_edits, score, word_edits


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis with its reference; rates of this pair, as fractions."""

    id: str
    reference: str
    hypothesis: str
    wer: float
    cer: float


class Evaluation:
    """The `compute_metrics` of a Trainer over the examples of `utterances`, in their order."""

    def __init__(self, processor: ASRDogeProcessor, utterances: Sequence[Utterance]) -> None:
        self.processor = processor
        self.utterances = utterances
        self.hypotheses: list[Hypothesis] = []
        """Hypotheses of the last evaluation, worst first."""

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """WER, CER and exact match, as fractions, of the rows that are not blank.

        Raises:
            DataError: all rows are blank.
        """
        label_ids, text_ids = (torch.as_tensor(ids) for ids in (prediction.label_ids, prediction.predictions))
        texts = self.processor.batch_decode(text_ids)
        is_blank = (label_ids == IGNORED_LABEL).all(dim=1).tolist()
        # Blank rows after the last utterance fill the last batch.
        rows = zip(self.utterances, texts, is_blank, strict=False)
        scored = [(utterance, *_normalized(utterance, text)) for utterance, text, blank in rows if not blank]
        if not scored:
            raise DataError(f"none of the {len(self.utterances)} dev utterances can be read any more: restore them")
        self.hypotheses = [
            Hypothesis(
                utterance.id, reference, text, word_edits(reference, text).rate, character_edits(reference, text).rate
            )
            for utterance, reference, text in scored
        ]
        metrics = _rates(self.hypotheses)
        spoken = [utterance.language for utterance, _, _ in scored]
        languages = sorted({language for language in spoken if language is not None})
        for language in languages if len(languages) > 1 else []:
            of_language = [one for one, other in zip(self.hypotheses, spoken, strict=True) if other == language]
            metrics |= {f"{name}_{language}": rate for name, rate in _rates(of_language).items()}
        self.hypotheses.sort(key=lambda one: (-one.cer, one.id))
        return metrics

    def write_hypotheses(self, path: Path) -> None:
        """Write them as JSON lines.

        Raises:
            DataError: the file cannot be written.
        """
        lines = (json.dumps(asdict(one), ensure_ascii=False) for one in self.hypotheses)
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


def _normalized(utterance: Utterance, text: str) -> tuple[str, str]:
    """Reference and hypothesis by the published rule, as `asr-doge benchmark` compares them."""
    language = utterance.language or "en"
    return (
        normalize_for_scoring(utterance.raw_text, language, "clean"),
        normalize_for_scoring(text, language, "clean"),
    )


def _rates(hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
    scores = score([one.reference for one in hypotheses], [one.hypothesis for one in hypotheses])
    return {"wer": scores.wer, "cer": scores.cer, "exact_match": scores.perfect_match_rate}
