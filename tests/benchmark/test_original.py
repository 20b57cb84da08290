"""The yardstick runs, on tiny sizes; both ways write as many tokens, and train on the same loss."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration

SCRIPT = Path(__file__).parents[2] / "bench" / "original.py"


@pytest.fixture(scope="module")
def original() -> ModuleType:
    specification = importlib.util.spec_from_file_location("original", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_both_ways_are_measured(
    original: ModuleType, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours in this process, and the original in one that the script starts."""
    options = ["--small", "--seconds", "1", "--tokens", "3", "--runs", "1", "--output", str(tmp_path / "report.json")]
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    assert original.main() == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sizes"] == "small"
    assert report["speedup"] == pytest.approx(report["original"]["seconds"] / report["asr_doge"]["seconds"])
    assert report["original"]["real_time_factor"] == pytest.approx(report["original"]["seconds"])


def test_without_a_cache_the_tokens_are_the_same(original: ModuleType) -> None:
    """The original's prefix, read anew for each token, gives what one cached generation from the same prefix gives."""
    model = original.Original(original.granite_config(True), original.doge_config(True), 16).eval()
    original.randomize(model)
    waveform, prompt = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)), torch.arange(3, 11)
    tokens = model.transcribe(waveform, prompt, 5)
    speech = model.speech.get_audio_features(original.log_mel_features(waveform)[None]).pooler_output
    embed = model.language_model.get_input_embeddings()
    prefix = torch.cat([embed(prompt)[None], model.adapter(speech)], dim=1)
    generated = model.language_model.generate(
        inputs_embeds=prefix, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert torch.equal(tokens, generated[0])


def test_of_a_clip_alone_the_loss_is_ours(original: ModuleType) -> None:
    """Where nothing is padded, a step of the original computes what one of ours does."""
    granite, doge = original.granite_config(True), original.doge_config(True)
    theirs = original.Original(granite, doge, 16).eval()
    config = ASRDogeConfig(encoder_config=granite, text_config=doge, adapter_hidden_dim=16, prompt_ids=[*range(3, 11)])
    ours = ASRDogeForConditionalGeneration(config)
    original.randomize(theirs)
    ours.language_model.load_state_dict(theirs.language_model.state_dict())
    ours.adapter.layers.load_state_dict(theirs.adapter.state_dict())
    features = original.log_mel_features(0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)))[None]
    with torch.no_grad():
        labels, speech = torch.tensor([[5, 9, 7]]), theirs.speech.get_audio_features(features).pooler_output
        assert torch.allclose(
            theirs.loss(features, torch.arange(3, 11), labels), ours(speech_embeddings=speech, labels=labels).loss
        )
