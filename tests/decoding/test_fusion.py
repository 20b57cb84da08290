"""Prefix beam search against every path there is and against the published algorithm, and searches of several clips."""

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax

from asr_doge.decoding import decoders
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.decoding.ctc import ctc_greedy_texts
from asr_doge.decoding.decoders import DecoderInputs, FusionDecoder, choose_decoder
from asr_doge.decoding.fusion import LabelSequence, prefix_beam_search
from asr_doge.decoding.language_model_scorer import LanguageModelScorer
from asr_doge.errors import ConfigError
from asr_doge.models import LoadedModel, load_model
from asr_doge.models.encoders import SpeechEncoderOutput

Scorer = Callable[[Sequence[Sequence[int]]], list[float]]


def _none(sequences: Sequence[Sequence[int]]) -> list[float]:
    return [0.0] * len(sequences)


def _search(
    log_posteriors: NDArray[np.float32], width: int, scorer: Scorer = _none, margin: float = math.inf
) -> list[LabelSequence]:
    """The search of one clip, given the word scores that it asks for."""
    search = prefix_beam_search(log_posteriors, width, margin)
    try:
        asked = next(search)
        while True:
            asked = search.send(scorer(asked))
    except StopIteration as end:
        found: list[LabelSequence] = end.value
        return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10_000))
def test_a_wide_beam_gives_every_sequence_its_whole_probability(frames: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_posteriors = log_softmax(rng.normal(0, 1.5, (frames, labels)), axis=1).astype(np.float32)
    probability: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(labels), repeat=frames):
        ids = tuple(label for label, _ in groupby(path) if label != 0)
        probability[ids] += float(np.exp(sum(log_posteriors[place, label] for place, label in enumerate(path))))
    sequences = _search(log_posteriors, len(probability) + 1)
    assert {sequence.ids for sequence in sequences} == set(probability)
    for sequence in sequences:
        assert np.exp(sequence.log_prob) == pytest.approx(probability[sequence.ids], rel=1e-4)
    assert [sequence.log_prob for sequence in sequences] == sorted((r.log_prob for r in sequences), reverse=True)


def test_a_narrow_beam_gives_as_many_as_it_is_wide() -> None:
    log_posteriors = log_softmax(np.random.default_rng(1).normal(0, 1, (20, 6)), axis=1).astype(np.float32)
    assert len(_search(log_posteriors, 5)) == 5


def test_what_is_further_behind_than_the_margin_is_given_up() -> None:
    log_posteriors = np.log(np.array([[0.6, 0.3, 0.1]], dtype=np.float32))
    assert [one.ids for one in _search(log_posteriors, 9, margin=2.0)] == [(), (1,), (2,)]
    assert [one.ids for one in _search(log_posteriors, 9, margin=1.0)] == [(), (1,)]
    assert [one.ids for one in _search(log_posteriors, 9, margin=0.5)] == [()]


def test_a_clip_without_frames_reads_as_nothing() -> None:
    (sequence,) = _search(np.zeros((0, 4), dtype=np.float32), 3)
    assert (sequence.ids, sequence.log_prob) == ((), 0.0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10_000))
def test_scores_rank_the_beam_and_leave_the_probabilities(frames: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_posteriors = log_softmax(rng.normal(0, 1.5, (frames, labels)), axis=1).astype(np.float32)
    weights = rng.normal(0, 3, labels)

    def scorer(sequences: Sequence[Sequence[int]]) -> list[float]:
        return [float(sum(weights[label] for label in ids)) for ids in sequences]

    plain = {one.ids: one.log_prob for one in _search(log_posteriors, 2000)}
    wide = _search(log_posteriors, 2000, scorer)
    assert {one.ids: one.log_prob for one in wide} == pytest.approx(plain)
    ranks = [one.log_prob + added for one, added in zip(wide, scorer([one.ids for one in wide]), strict=True)]
    assert ranks == sorted(ranks, reverse=True)


def test_scores_keep_what_a_narrow_beam_would_drop() -> None:
    certain, unsure = [0.0, -20.0, -20.0], [-2.0, -0.5, -1.2]
    log_posteriors = log_softmax(np.array([unsure, certain, unsure, certain]), axis=1).astype(np.float32)
    assert (2, 2) not in [one.ids for one in _search(log_posteriors, 2)]
    best, _ = _search(log_posteriors, 2, lambda found: [5.0 * ids.count(2) for ids in found])
    assert best.ids == (2, 2)


def _published_search(
    log_posteriors: NDArray[np.float32], width: int, scorer: Scorer, margin: float
) -> list[tuple[tuple[int, ...], float]]:
    """Algorithm 1 of https://arxiv.org/abs/1408.2873 word by word, in probabilities, without its language model.

    The beam is cut by the product with the score, which a sequence has from its prefix until it is kept.
    """
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    known: dict[tuple[int, ...], float] = {(): 1.0}
    for frame in np.exp(log_posteriors.astype(np.float64)):
        in_blank: dict[tuple[int, ...], float] = defaultdict(float)
        in_label: dict[tuple[int, ...], float] = defaultdict(float)
        for ids, (blank, label) in beam.items():
            for number, probability in enumerate(frame):
                longer = (*ids, number)
                if number == 0:
                    in_blank[ids] += probability * (blank + label)
                elif ids and ids[-1] == number:
                    in_label[longer] += probability * blank
                    in_label[ids] += probability * label
                else:
                    in_label[longer] += probability * (blank + label)
        found = {ids: (in_blank[ids], in_label[ids]) for ids in {*in_blank, *in_label}}
        worth = {ids: sum(ends) * (known[ids] if ids in known else known[ids[:-1]]) for ids, ends in found.items()}
        kept = sorted(worth, key=lambda ids: -worth[ids])[:width]
        kept = [ids for ids in kept if worth[ids] > worth[kept[0]] * math.exp(-margin)]
        known = {ids: known[ids] if ids in known else math.exp(scorer([ids])[0]) for ids in kept}
        beam = {ids: found[ids] for ids in kept}
    best = sorted(beam, key=lambda ids: -sum(beam[ids]) * known[ids])
    return [(ids, math.log(sum(beam[ids]))) for ids in best]


@given(
    st.integers(1, 25),
    st.integers(2, 9),
    st.integers(1, 12),
    st.sampled_from([0.5, 3.0, math.inf]),
    st.sampled_from([0.0, 0.3, 3.0]),
    st.floats(0.5, 6.0),
    st.integers(0, 10_000),
)
def test_a_narrow_beam_is_that_of_the_published_algorithm(
    frames: int, labels: int, width: int, margin: float, spread: float, peaks: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    log_posteriors = log_softmax(rng.normal(0, peaks, (frames, labels)), axis=1).astype(np.float32)
    bigrams = rng.normal(0, spread, (labels, labels))

    def scorer(sequences: Sequence[Sequence[int]]) -> list[float]:
        return [float(sum(bigrams[pair] for pair in itertools.pairwise(ids))) for ids in sequences]

    found = _search(log_posteriors, width, scorer, margin)
    expected = _published_search(log_posteriors, width, scorer, margin)
    assert [one.ids for one in found] == [ids for ids, _ in expected]
    assert [one.log_prob for one in found] == pytest.approx([log_prob for _, log_prob in expected], rel=1e-6, abs=1e-6)


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


def test_the_language_model_reads_for_all_clips_at_once(
    assembled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers: list[LanguageModelScorer] = []

    class Noted(LanguageModelScorer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            scorers.append(self)

    monkeypatch.setattr(decoders, "LanguageModelScorer", Noted)
    decoder = FusionDecoder(assembled, DecodingConfig(decoder="fusion"))
    together = decoder.decode(_heard(assembled, (0, 1, 2)))
    alone = [decoder.decode(_heard(assembled, (clip,)))[0] for clip in range(3)]
    assert [texts[0].passes for texts in together] == [texts[0].passes for texts in alone]
    assert [scorer.passes for scorer in scorers[1:]] == [
        1 + texts[0].passes for texts in alone
    ]  # one for the first token
    # That one, those of the longest search, and of each clip's whole texts.
    assert scorers[0].passes == 1 + max(texts[0].passes for texts in alone) - 1 + 3


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
