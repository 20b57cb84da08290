"""Searches over the language model give each clip its own texts, whatever is beside it."""

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.decoding.decoders import DecoderInputs, Hypothesis, SearchDecoder
from asr_doge.models import LoadedModel
from asr_doge.models.encoders import SpeechEncoderOutput
from tests.models import tiny

LENGTHS = (9, 3, 6)
"""Speech embeddings of each clip."""


def searched(loaded: LoadedModel, clips: Sequence[int], drafts: Sequence[str], beams: int) -> list[list[Hypothesis]]:
    """All texts of some of the clips, decoded together, as long as their drafts let them be."""
    embeddings = tiny.random_clips(LENGTHS, tiny.SPEECH_SIZE, seed=3)
    padded, mask = tiny.padded([embeddings[clip] for clip in clips])
    inputs = DecoderInputs(SpeechEncoderOutput(padded, mask.sum(dim=1)), [(drafts[clip], 0.0) for clip in clips])
    with torch.inference_mode():
        return SearchDecoder(loaded, bound_length=True, num_beams=beams, n_best=beams).decode(inputs)


@settings(max_examples=8)
@given(drafts=st.lists(st.text("ab ", max_size=8), min_size=3, max_size=3), beams=st.sampled_from([1, 2, 4]))
def test_a_neighbours_limit_changes_no_text(assembled: LoadedModel, drafts: list[str], beams: int) -> None:
    """Random models never stop by themselves, so that every text reaches its limit."""
    together = searched(assembled, (0, 1, 2), drafts, beams)
    for clip, hypotheses in enumerate(together):
        (alone,) = searched(assembled, (clip,), drafts, beams)
        assert [one.tokens for one in hypotheses] == [one.tokens for one in alone]
        assert [one.cut for one in hypotheses] == [one.cut for one in alone]
