"""Each pass of the language model counts to the stage that it is, whatever the batch."""

import torch

from asr_doge.benchmark.stages import Stage, observed
from asr_doge.models import LoadedModel


class Noted:
    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def enter(self, stage: Stage) -> None:
        self.stages.append(stage)

    def leave(self, stage: Stage) -> None:
        assert stage == self.stages[-1]


def test_speech_is_read_before_text_is_written_also_where_rows_are_read_in_groups(assembled: LoadedModel) -> None:
    model = assembled.model
    speech = torch.randn(2, 60, model.encoder.hidden_size, dtype=torch.float64)
    mask = torch.arange(60)[None] < torch.tensor([60, 3])[:, None]
    text = torch.tensor([[5, 6], [7, 8]])
    noted = Noted()
    with observed(assembled, noted):
        _, reading = model.prefill(speech, mask, text)
        model.extend(reading, text)
        model.generate(speech_embeddings=speech, attention_mask=mask, min_new_tokens=2, max_new_tokens=2)
    by_drafts, by_tokens = noted.stages[:4], noted.stages[4:]
    assert by_drafts == ["adapter", "prefill", "prefill", "generation"]
    assert by_tokens == ["adapter", "prefill", "generation"]
