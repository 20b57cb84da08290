"""Waveforms become padded batches in which no clip knows of its neighbours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from asr_doge.audio.log_mel import log_mel_features
from asr_doge.models import ASRDogeProcessor, LoadedModel, LogMelFeatureExtractor
from tests.models import tiny


def test_a_batch_holds_each_clips_own_features() -> None:
    waveforms = [tiny.random_waveform(seconds, seed=i) for i, seconds in enumerate((0.5, 1.7, 0.02))]
    batch = LogMelFeatureExtractor()(waveforms, sampling_rate=16_000)
    assert batch.input_features.shape == (3, 85, 160)
    assert batch.attention_mask.sum(dim=1).tolist() == [25, 85, 1]
    for features, mask, waveform in zip(batch.input_features, batch.attention_mask, waveforms, strict=True):
        assert torch.equal(features[mask.bool()], log_mel_features(torch.from_numpy(waveform)))
        assert not features[~mask.bool()].any()


def test_one_waveform_is_a_batch_of_one_whatever_holds_it() -> None:
    extractor = LogMelFeatureExtractor()
    waveform = tiny.random_waveform(0.5)
    wanted = extractor([waveform]).input_features
    for same in (waveform, torch.from_numpy(waveform), waveform[None], waveform.astype(np.float64)):
        assert torch.equal(extractor(same).input_features, wanted)


def test_another_sampling_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="expected waveforms at 16000 Hz, got 8000 Hz"):
        LogMelFeatureExtractor()(tiny.random_waveform(0.5), sampling_rate=8_000)


def test_labels_end_with_eos_and_come_back_as_text(assembled: LoadedModel) -> None:
    processor = assembled.processor
    labels = processor(text=["the sea", "it's nine o'clock, and all is well"]).labels
    assert labels[0].tolist().count(1) == labels[1].tolist().count(1) == 1
    assert labels[0].tolist()[-1] == -100
    assert labels[1].tolist()[-1] == 1
    assert processor.batch_decode(labels) == ["the sea", "it's nine o'clock, and all is well"]


def test_prompts_of_several_languages_are_a_batch(assembled: LoadedModel) -> None:
    plain = assembled.processor
    assert plain.prompt_ids("de").tolist() == assembled.model.config.prompt_ids
    named = ASRDogeProcessor(plain.feature_extractor, plain.tokenizer, "{language} sea")
    prompts = named(language=["de", None, "en"]).prompt_ids
    texts = plain.tokenizer.batch_decode([row[row >= 0].tolist() for row in prompts])
    assert texts == ["<s>german sea", "<s>sea", "<s>english sea"]


def test_the_saved_extractor_is_found_again(checkpoint_folder: Path) -> None:
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint_folder)
    assert isinstance(extractor, LogMelFeatureExtractor)
    assert (extractor.feature_size, extractor.sampling_rate) == (160, 16_000)
