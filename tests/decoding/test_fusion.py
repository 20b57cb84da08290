"""Prefix beam search against every path there is, and the language model's scores against its own loss."""

import copy
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from transformers import DogeConfig

from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.ctc import ctc_greedy_texts
from asr_doge.decoding.decoders import DecoderInputs, FusionDecoder, choose_decoder
from asr_doge.decoding.fusion import prefix_beam_search, text_log_probs
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel, load_model
from asr_doge.models.encoders import SpeechEncoderOutput
from asr_doge.models.language_model import build_language_model


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10_000))
def test_a_wide_beam_gives_every_sequence_its_whole_probability(frames: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_posteriors = log_softmax(rng.normal(0, 1.5, (frames, labels)), axis=1).astype(np.float32)
    probability: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(labels), repeat=frames):
        ids = tuple(label for label, _ in groupby(path) if label != 0)
        probability[ids] += float(np.exp(sum(log_posteriors[place, label] for place, label in enumerate(path))))
    sequences = prefix_beam_search(log_posteriors, width=len(probability) + 1)
    assert {sequence.ids for sequence in sequences} == set(probability)
    for sequence in sequences:
        assert np.exp(sequence.log_prob) == pytest.approx(probability[sequence.ids], rel=1e-4)
    assert [sequence.log_prob for sequence in sequences] == sorted((r.log_prob for r in sequences), reverse=True)


def test_a_narrow_beam_gives_as_many_as_it_is_wide() -> None:
    log_posteriors = log_softmax(np.random.default_rng(1).normal(0, 1, (20, 6)), axis=1).astype(np.float32)
    assert len(prefix_beam_search(log_posteriors, width=5)) == 5


def test_what_is_further_behind_than_the_margin_is_given_up() -> None:
    log_posteriors = np.log(np.array([[0.6, 0.3, 0.1]], dtype=np.float32))
    assert [one.ids for one in prefix_beam_search(log_posteriors, width=9, margin=2.0)] == [(), (1,), (2,)]
    assert [one.ids for one in prefix_beam_search(log_posteriors, width=9, margin=1.0)] == [(), (1,)]
    assert [one.ids for one in prefix_beam_search(log_posteriors, width=9, margin=0.5)] == [()]


def test_a_clip_without_frames_reads_as_nothing() -> None:
    (sequence,) = prefix_beam_search(np.zeros((0, 4), dtype=np.float32), width=3)
    assert (sequence.ids, sequence.log_prob) == ((), 0.0)


def test_texts_weigh_alone_what_they_weigh_together() -> None:
    torch.manual_seed(0)
    config = DogeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=2
    )
    model = build_language_model(config).eval()
    prompt, rows = [0, 5, 6], [[7, 8, 9, 1], [10, 1], [11, 12, 13, 14, 15, 1]]
    together = text_log_probs(model, prompt, rows, torch.device("cpu"))
    for row, found in zip(rows, together, strict=True):
        ids = torch.tensor([[*prompt, *row]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        mean_loss = float(model(input_ids=ids, labels=labels).loss.detach())  # transformers' own
        assert len(found) == len(row)
        assert sum(found) == pytest.approx(-mean_loss * len(row), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10_000))
def test_a_prior_ranks_the_beam_and_leaves_the_probabilities(frames: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_posteriors = log_softmax(rng.normal(0, 1.5, (frames, labels)), axis=1).astype(np.float32)
    weights = rng.normal(0, 3, labels)

    def prior(sequences: Sequence[Sequence[int]]) -> list[float]:
        return [float(sum(weights[label] for label in ids)) for ids in sequences]

    plain = {one.ids: one.log_prob for one in prefix_beam_search(log_posteriors, width=2000)}
    wide = prefix_beam_search(log_posteriors, width=2000, prior=prior)
    assert {one.ids: one.log_prob for one in wide} == pytest.approx(plain)
    ranks = [one.log_prob + added for one, added in zip(wide, prior([one.ids for one in wide]), strict=True)]
    assert ranks == sorted(ranks, reverse=True)


def test_a_prior_keeps_what_a_narrow_beam_would_drop() -> None:
    certain, unsure = [0.0, -20.0, -20.0], [-2.0, -0.5, -1.2]
    log_posteriors = log_softmax(np.array([unsure, certain, unsure, certain]), axis=1).astype(np.float32)
    assert (2, 2) not in [one.ids for one in prefix_beam_search(log_posteriors, width=2)]
    best, _ = prefix_beam_search(log_posteriors, width=2, prior=lambda found: [5.0 * ids.count(2) for ids in found])
    assert best.ids == (2, 2)


def _heard(loaded: LoadedModel, clips: Sequence[int]) -> DecoderInputs:
    """Random letters in clips of 9, 5 and 7 frames, and their drafts."""
    ids = [0, *loaded.model.encoder.ctc_ids("ab ")]
    logits = torch.full((3, 9, 128), -30.0)
    logits[..., ids] = torch.randn(3, 9, len(ids), generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([9, 5, 7])
    chosen, lengths = logits[list(clips)], lengths[list(clips)]
    texts = ctc_greedy_texts(loaded.model.encoder, chosen, lengths)
    speech = SpeechEncoderOutput(torch.zeros(len(lengths), 1, 1), torch.ones_like(lengths), chosen, lengths)
    return DecoderInputs(speech, [(text, 0.0) for text in texts])


def test_clips_are_weighed_each_for_itself(assembled: LoadedModel) -> None:
    decoder = FusionDecoder(assembled, DecodingConfig(decoder="fusion", n_best=4))
    together = decoder.decode(_heard(assembled, (0, 1, 2)))
    for clip, hypotheses in enumerate(together):
        (alone,) = decoder.decode(_heard(assembled, (clip,)))
        assert [one.text for one in hypotheses] == [one.text for one in alone]
        assert [one.score for one in hypotheses] == pytest.approx([one.score for one in alone], rel=1e-4)
        assert len({one.text for one in hypotheses}) == len(hypotheses) == 4


def test_weights_choose_the_text(assembled: LoadedModel) -> None:
    inputs = _heard(assembled, (0,))
    by_head, by_words, few_words = (
        FusionDecoder(
            assembled, DecodingConfig(decoder="fusion", n_best=16, language_model_weight=0.0, word_bonus=bonus)
        ).decode(inputs)[0]
        for bonus in (0.0, 100.0, -100.0)
    )
    words = [len(one.text.split()) for one in by_head]
    assert len(by_words[0].text.split()) >= max(words) > min(words) >= len(few_words[0].text.split())


def test_a_draft_with_hotwords_stays(assembled: LoadedModel) -> None:
    inputs = replace(_heard(assembled, (1,)), drafts=[("abba", -1.0)])
    ((hypothesis,),) = FusionDecoder(assembled, DecodingConfig(decoder="fusion")).decode(inputs)
    assert hypothesis.text == "abba"


def test_a_checkpoint_names_its_decoder(assembled: LoadedModel, tmp_path: Path) -> None:
    model = copy.deepcopy(assembled.model)
    model.config.default_decoder = "fusion"
    LoadedModel(model, assembled.processor).save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu")
    assert choose_decoder(DecodingConfig(), again) == "fusion"
    assert choose_decoder(DecodingConfig(num_beams=4), again) == "fusion"  # wider, and not another search
    assert choose_decoder(DecodingConfig(decoder="ctc"), again) == "ctc"
    again.model.config.default_decoder = "magic"
    with pytest.raises(ConfigError, match="names default_decoder 'magic'"):
        choose_decoder(DecodingConfig(), again)
