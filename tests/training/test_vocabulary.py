"""A run may let the model write the tokens of its texts only; checkpoints and resumed runs keep to them."""

from dataclasses import replace
from pathlib import Path

import pytest

from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.manifest import Utterance
from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model, load_model
from asr_doge.training.heads import tokens_of
from tests.training.conftest import Train


@pytest.fixture
def texts(corpus: Path, tmp_path: Path) -> Path:
    for split, text in (("train", "one two two"), ("dev", "two six")):
        utterances = read_manifest(corpus / f"{split}_manifest.json")
        write_manifest(tmp_path / f"{split}_manifest.json", [replace(one, text=text) for one in utterances])
    return tmp_path


def test_the_tokens_of_the_texts_are_written_and_no_others(run: Train, texts: Path) -> None:
    run(texts / "run", data_dir=str(texts), epochs=1, vocabulary="texts")
    loaded = load_model(texts / "run" / "best", device="cpu")
    tokenizer, kept = loaded.processor.tokenizer, loaded.model.config.vocabulary_ids
    assert kept is not None
    assert kept == sorted(kept)
    assert {*tokenizer("one two two").input_ids, *tokenizer("two six").input_ids, tokenizer.eos_token_id} <= {*kept}
    assert {character for token in kept for character in tokenizer.decode([token])} >= set("onetwosix ")
    # Digits that no text names would have to be written by tokens that none of them uses.
    assert not {*tokenizer("seven eight").input_ids} <= {*kept}


def test_a_run_goes_on_with_the_tokens_it_began_with(run: Train, texts: Path) -> None:
    run(texts / "run", data_dir=str(texts), epochs=1, vocabulary="texts")
    with pytest.raises(ConfigError, match="--vocabulary"):
        run(texts / "run", data_dir=str(texts), epochs=2, resume_from="latest", allow_config_change=True)


def test_characters_of_several_bytes_can_be_written_alone(granite_folder: Path, doge_folder: Path) -> None:
    """In byte-level BPE, of which no token is such a character."""
    loaded = assemble_model(str(granite_folder), str(doge_folder), device="cpu")
    tokenizer = loaded.processor.tokenizer
    kept = tokens_of(loaded.processor, [Utterance("1", Path("1.wav"), "школа été", "", 1.0)])
    assert {*tokenizer("кок шал é").input_ids} <= {*kept}
    assert not {*tokenizer("ю").input_ids} <= {*kept}
