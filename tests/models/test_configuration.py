"""The configuration is the published pair by default, and survives being saved."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, DogeConfig, GraniteSpeechConfig

from asr_doge.errors import ConfigError
from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration


def test_the_default_model_has_the_published_sizes() -> None:
    with torch.device("meta"):
        counts = ASRDogeForConditionalGeneration(ASRDogeConfig()).count_parameters()
    assert counts.encoder == pytest.approx(475.7e6, rel=0.01)
    assert counts.language_model == pytest.approx(335.75e6, rel=0.001)
    assert counts.adapter == counts.trainable == 1_574_400
    assert counts.total == counts.encoder + counts.adapter + counts.language_model
    assert counts.trainable_share == pytest.approx(1_574_400 / 813.0e6, rel=0.01)


def test_what_is_trained_is_counted() -> None:
    def trainable(choice: str) -> tuple[int, int]:
        with torch.device("meta"):
            counts = ASRDogeForConditionalGeneration(ASRDogeConfig(train_language_model=choice)).count_parameters()
        return counts.trainable, counts.adapter + counts.language_model

    lora, everything = trainable("lora")
    assert 1_574_400 < lora < 0.05 * everything
    full, everything = trainable("full")
    assert full == everything


def test_a_saved_configuration_comes_back(tmp_path: Path) -> None:
    config = ASRDogeConfig(
        adapter_stack=3,
        adapter_output_norm=True,
        prompt_template="what is said? ",
        prompt_ids=[0, 7, 8],
        train_language_model="lora",
        lora={"r": 2, "target_modules": ["q_proj"]},
        speech_encoder=None,
        encoder_config=GraniteSpeechConfig(window_size=10),
        text_config=DogeConfig(hidden_size=64),
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ASRDogeConfig)
    assert loaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert isinstance(loaded.encoder_config, GraniteSpeechConfig)
    assert loaded.encoder_config.window_size == 10
    assert isinstance(loaded.text_config, DogeConfig)
    assert loaded.text_config.hidden_size == 64
    assert loaded.speech_encoder is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_type": "cnn"}, "adapter_type must be one of mlp, linear, conv, qformer; got 'cnn'"),
        ({"train_language_model": "some"}, "train_language_model must be one of none, lora, full; got 'some'"),
        ({"adapter_hidden_dim": 0}, "adapter_hidden_dim"),
        ({"adapter_stack": 0}, "adapter_stack"),
        ({"prompt_template": "in {lang}: "}, "only {language} can stand in braces"),
    ],
)
def test_a_value_that_names_no_choice_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ASRDogeConfig(**options)  # type: ignore[arg-type]
