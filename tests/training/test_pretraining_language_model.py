"""A language model of a few sentences: what it reads, what it leaves out, and that it loads like any other."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from asr_doge.errors import ConfigError, DataError
from asr_doge.models.checkpoints import find_model, load_model_config, load_tokenizer
from asr_doge.models.language_model import load_language_model
from asr_doge.training.pretraining_configuration import PretrainLanguageModelConfig
from asr_doge.training.pretraining_language_model import TokenBatches, pretrain_language_model, read_texts

SENTENCES = ["The cat sat.", "A dog ran, fast!", "Mr. Fox looks on.", "It rained all day."]


def _config(folder: Path, **changes: object) -> PretrainLanguageModelConfig:
    (folder / "a.txt").write_text("\n".join(SENTENCES[:2]) + "\n\n", encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(SENTENCES[2:]) + "\n")
    line = {"id": "1", "audio_path": "1.wav", "text": "a dog ran fast", "duration": 1.0}
    (folder / "test_manifest.json").write_text(json.dumps(line) + "\n", encoding="utf-8")
    settings = {
        "output_dir": str(folder / "out"),
        "text_files": [str(folder / "a.txt"), str(folder / "b.txt.gz")],
        "without_manifests": [str(folder / "test_manifest.json")],
        "text_vocab_size": 300,
        "text_hidden_dim": 16,
        "text_layers": 1,
        "steps": 4,
        "batch_tokens": 60,
    }
    return PretrainLanguageModelConfig(**(settings | changes))  # type: ignore[arg-type]


def test_texts_are_normalized_and_those_of_a_test_set_left_out(tmp_path: Path) -> None:
    assert read_texts(_config(tmp_path)) == ["the cat sat", "mr fox looks on", "it rained all day"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt does not exist"):
        read_texts(_config(tmp_path, text_files=[str(tmp_path / "nothing.txt")]))


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    config = _config(tmp_path)
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"b\.txt\.gz is not a complete gzip file"):
        read_texts(config)


def test_every_sentence_is_in_each_pass_and_no_batch_is_too_large() -> None:
    rows = [[1] * length for length in (3, 9, 4, 4, 8, 2, 5)]
    batches = TokenBatches(rows, batch_tokens=12, size=5, seed=0)
    once = sorted(place for batch in TokenBatches(rows, 12, 4, 0).batches for place in batch)
    assert len(once) == len(set(once))
    for batch in batches.batches:
        assert len(batch) * max(len(rows[place]) for place in batch) <= 12


def test_what_it_writes_loads_and_its_dev_loss_is_finite(tmp_path: Path) -> None:
    config = _config(tmp_path)
    results = pretrain_language_model(config)
    reference = find_model(tmp_path / "out" / "language_model")
    model = load_language_model(reference, load_model_config(reference), torch.float32)
    tokenizer = load_tokenizer(reference)
    assert model.config.model_type == "doge"
    assert model.num_parameters() == results["parameters"]
    assert tokenizer.decode(tokenizer("it's a dog").input_ids) == "it's a dog"
    assert math.isfinite(results["dev_loss"])
    with pytest.raises(ConfigError, match=r"was begun with another --steps \(4, now 5\): "):
        pretrain_language_model(_config(tmp_path, steps=5))
    assert results["dev_perplexity"] > 1
