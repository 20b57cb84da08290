"""A model.bin of CTranslate2 becomes the Whisper that it was made of, and a damaged one becomes a message."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

from asr_doge.errors import CheckpointError
from asr_doge.models.ctranslate2 import convert_whisper, read_variables, whisper_weights
from tests.models import tiny
from tests.models.ctranslate2_file import SETTINGS, model_bin, tokenizer_json

WHISPER = tiny.whisper_model(seed=3).half().float()
"""Its weights are 16-bit numbers, as those that OpenAI published."""
CONTENT = model_bin(WHISPER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "whisper"
    convert_whisper(CONTENT, SETTINGS, tokenizer_json(), folder)
    return folder


def test_the_model_is_the_one_that_was_converted(folder: Path) -> None:
    theirs = WHISPER.state_dict()
    converted = WhisperForConditionalGeneration.from_pretrained(folder)
    assert converted.dtype == torch.float32
    ours = converted.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    features = torch.stack([clip.T.float() for clip in tiny.random_clips([3000], size=80)])
    with torch.no_grad():
        expected = WHISPER.eval()(features, decoder_input_ids=torch.tensor([[41, 42, 7]])).logits
        found = converted.eval()(features, decoder_input_ids=torch.tensor([[41, 42, 7]])).logits
    assert torch.equal(found, expected)
    assert expected.std() > 0.1


def test_the_folder_has_all_that_transformers_looks_for(folder: Path) -> None:
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (type(extractor).__name__, extractor.feature_size) == ("WhisperFeatureExtractor", 80)
    assert (type(tokenizer).__name__, tokenizer.pad_token) == ("WhisperTokenizer", "<|endoftext|>")
    assert (folder / "tokenizer.json").read_bytes() == tokenizer_json()
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["decoder_start_token_id"], settings["eos_token_id"]) == (41, 40)
    assert (settings["suppress_tokens"], settings["begin_suppress_tokens"]) == ([1, 2], [3])
    assert (settings["no_timestamps_token_id"], settings["is_multilingual"]) == (46, False)


@given(end=st.integers(0, len(CONTENT) - 1))
def test_a_file_that_breaks_off_is_refused_wherever_it_does(end: int) -> None:
    with pytest.raises(CheckpointError, match=r"model\.bin is damaged or not CTranslate2's"):
        read_variables(CONTENT[:end])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT + b"x", "1 bytes follow its end"),
        (b"\x05" + CONTENT[1:], "version 5, not 6"),
        (model_bin(WHISPER, specification="TransformerSpec"), "'TransformerSpec', not WhisperSpec"),
    ],
)
def test_a_file_of_something_else_is_named(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_variables(content)


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="quantized: only 16-bit and 32-bit"):
        whisper_weights(read_variables(model_bin(WHISPER, kind="int8")))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    variables = read_variables(CONTENT)
    del variables["decoder/layer_0/attention/linear_1/weight"]
    with pytest.raises(CheckpointError, match="has no 'decoder/layer_0/attention/linear_1/weight'"):
        whisper_weights(variables)


def test_a_bias_where_whisper_has_none_is_refused() -> None:
    variables = read_variables(CONTENT)
    bias = variables["encoder/layer_1/self_attention/linear_0/bias"].copy()
    bias[16] = 1  # of the keys, which come after 16 queries
    variables["encoder/layer_1/self_attention/linear_0/bias"] = bias
    with pytest.raises(CheckpointError, match=r"bias for model\.encoder\.layers\.1\.self_attn\.k_proj"):
        whisper_weights(variables)
    assert bias.dtype == np.float16
