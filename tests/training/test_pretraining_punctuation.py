"""A punctuation model of one short text: what it reads, what it leaves out, and that it learns the text."""

import json
from pathlib import Path

import pytest

from asr_doge.errors import ConfigError, DataError
from asr_doge.models.checkpoints import find_model
from asr_doge.models.punctuation import load_punctuator
from asr_doge.training.pretraining_configuration import PretrainPunctuationConfig
from asr_doge.training.pretraining_punctuation import pretrain_punctuation, read_sentences

SENTENCES = ["The cat sat.", "A dog ran, fast!", "Did Mr. Fox look on?", "It rained all day.", "The cat sat."]


def _config(folder: Path, **changes: object) -> PretrainPunctuationConfig:
    (folder / "a.txt").write_text("\n".join([*SENTENCES, "ALL IN CAPITALS", ""]), encoding="utf-8")
    line = {"id": "1", "audio_path": "1.wav", "text": "a dog ran fast", "duration": 1.0}
    (folder / "test_manifest.json").write_text(json.dumps(line) + "\n", encoding="utf-8")
    settings = {
        "output_dir": str(folder / "out"),
        "text_files": [str(folder / "a.txt")],
        "without_manifests": [str(folder / "test_manifest.json")],
        "text_vocab_size": 300,
        "text_hidden_dim": 32,
        "text_layers": 1,
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 1e-2,
    }
    return PretrainPunctuationConfig(**(settings | changes))  # type: ignore[arg-type]


def test_each_sentence_is_read_once_and_those_of_a_test_set_are_not(tmp_path: Path) -> None:
    plain = [" ".join(word for word, _ in sentence) for sentence in read_sentences(_config(tmp_path))]
    assert plain == ["the cat sat", "did mr fox look on", "it rained all day"]


def test_a_text_without_case_and_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("the cat sat\n", encoding="utf-8")
    with pytest.raises(DataError, match="hold no sentence with case or punctuation"):
        read_sentences(_config(tmp_path, text_files=[str(tmp_path / "plain.txt")]))


def test_a_run_is_not_continued_with_another_recipe(tmp_path: Path) -> None:
    pretrain_punctuation(_config(tmp_path, steps=1))
    with pytest.raises(ConfigError, match=r"stages/punctuation was begun with another --seed \(0, now 1\): "):
        pretrain_punctuation(_config(tmp_path, steps=1, seed=1))


def test_it_learns_to_write_its_text(tmp_path: Path) -> None:
    results = pretrain_punctuation(_config(tmp_path))
    punctuator = load_punctuator(find_model(tmp_path / "out"))
    words = ["the", "cat", "sat", "did", "mr", "fox", "look", "on", "it", "rained", "all", "day"]
    assert " ".join(punctuator.write(words)) == "The cat sat. Did Mr. Fox look on? It rained all day."
    assert results["mark_precision"] == results["mark_recall"] == results["case_accuracy"] == 1.0
