"""Searches over the language model give each clip its own texts, whatever is beside it."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.ctc import ctc_greedy_texts
from asr_doge.decoding.decoders import DecoderInputs, Hypothesis, SearchDecoder, build_decoder
from asr_doge.errors import ConfigError
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
        assert [one.truncated for one in hypotheses] == [one.truncated for one in alone]


def naming(loaded: LoadedModel, decoder: str) -> LoadedModel:
    """The same model, from a checkpoint that names its decoder."""
    model = copy.deepcopy(loaded.model)
    model.config.default_decoder = decoder
    return LoadedModel(model, loaded.processor)


def one_clip(loaded: LoadedModel) -> DecoderInputs:
    """A clip of 9 frames in which the head hears random letters."""
    ids = [0, *loaded.model.encoder.ctc_ids("ab ")]
    logits = torch.full((1, 9, 128), -30.0)
    logits[..., ids] = torch.randn(1, 9, len(ids), generator=torch.Generator().manual_seed(4))
    length = torch.tensor([9])
    embeddings = torch.stack(tiny.random_clips((9,), tiny.SPEECH_SIZE, seed=3))
    text = ctc_greedy_texts(loaded.model.encoder, logits, length)[0]
    return DecoderInputs(SpeechEncoderOutput(embeddings, length, logits, length), [(text, 0.0)])


def test_a_checkpoint_that_names_beam_gets_a_beam_search(assembled: LoadedModel) -> None:
    """As many beams as `--num_beams` says that `--decoder beam` has: 4."""
    decoder = build_decoder(DecodingConfig(), naming(assembled, "beam"))
    assert isinstance(decoder, SearchDecoder)
    assert decoder.num_beams == 4


def test_n_best_is_held_against_the_beams_of_the_decoder_that_the_checkpoint_names(assembled: LoadedModel) -> None:
    """`--num_beams` says that `fusion` keeps 24 hypotheses and `beam` 4."""
    for name, beams in (("fusion", 24), ("beam", 4)):
        loaded = naming(assembled, name)
        config = DecodingConfig(n_best=beams)
        config.check()
        (hypotheses,) = build_decoder(config, loaded).decode(one_clip(loaded))
        assert min(beams, 9) <= len(hypotheses) <= beams  # so short a clip has no 24 texts
        with pytest.raises(ConfigError, match=f"--n_best {beams + 1} .*{name} keeps {beams}.*--num_beams {beams + 1}"):
            build_decoder(DecodingConfig(n_best=beams + 1), loaded)


def test_n_best_of_a_decoder_with_one_text_names_a_way_out(assembled: LoadedModel) -> None:
    with pytest.raises(ConfigError, match=r"--n_best 2 .*draft gives one.*--num_beams 2"):
        build_decoder(DecodingConfig(n_best=2), assembled)
    with pytest.raises(ConfigError, match=r"--n_best 2 .*greedy gives one.*--decoder beam"):
        build_decoder(DecodingConfig(decoder="greedy", n_best=2), assembled)
    with pytest.raises(ConfigError, match=r"--n_best 2 .*ctc gives one.*leave it out"):
        build_decoder(DecodingConfig(n_best=2), assembled.speech_encoder)
