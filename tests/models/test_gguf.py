"""A language model in a GGUF file is read as any other; what cannot be read is named."""

from pathlib import Path

import pytest
import torch

from asr_doge.cli import main
from asr_doge.errors import CheckpointError
from asr_doge.models import assemble_model, load_model
from asr_doge.models.checkpoints import find_model, load_model_config, load_tokenizer
from asr_doge.models.language_model import load_language_model
from tests.models import gguf_file, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ASR_DOGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "asr-doge" / "gguf"


def test_the_model_is_the_one_that_was_written(tmp_path: Path, cache: Path) -> None:
    model = gguf_file.qwen2_model()
    gguf_file.write(tmp_path / "tiny.gguf", model)
    reference = find_model(tmp_path / "tiny.gguf")
    loaded = load_language_model(reference, load_model_config(reference), torch.float32)
    ids = torch.tensor([[5, 9, 40, 7, 80]])
    with torch.no_grad():
        expected = model(ids).logits
        found = loaded(ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.1
    tokenizer, theirs = load_tokenizer(reference), tiny.tokenizer()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)
    text = "the quick brown fox"
    assert tokenizer(text, add_special_tokens=False).input_ids == theirs(text, add_special_tokens=False).input_ids

    (folder,) = (found for found in cache.iterdir() if not found.name.startswith("."))
    made = folder.stat().st_mtime_ns
    assert find_model(tmp_path / "tiny.gguf").folder == folder
    assert folder.stat().st_mtime_ns == made


def test_a_checkpoint_points_to_the_file(granite_folder: Path, tmp_path: Path) -> None:
    gguf_file.write(tmp_path / "tiny.gguf", gguf_file.qwen2_model())
    loaded = assemble_model(granite_folder, tmp_path / "tiny.gguf", device="cpu")
    assert loaded.model.config.language_model == str((tmp_path / "tiny.gguf").resolve())
    tiny.randomize(loaded.model.adapter, seed=1)
    batch = loaded.processor([tiny.random_waveform(0.7)])
    expected = loaded.model.generate(**batch, max_new_tokens=4)
    loaded.save(tmp_path / "checkpoint")
    again = load_model(tmp_path / "checkpoint", device="cpu")
    assert torch.equal(again.model.generate(**batch, max_new_tokens=4), expected)


def test_a_file_given_as_speech_encoder_is_refused_before_it_is_unpacked(
    doge_folder: Path, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_file.write(path, gguf_file.qwen2_model())
    with pytest.raises(CheckpointError, match=r"tiny\.gguf' is a language model .* give it as --language_model$"):
        assemble_model(path, doge_folder, device="cpu")
    assert not cache.exists()


def test_what_cannot_be_read_is_named(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_file.write(path, gguf_file.qwen2_model(), architecture="plamo")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be used \(GGUF model with architecture plamo"):
        find_model(path)
    gguf_file.write(path, gguf_file.qwen2_model())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf cannot be used"):
        find_model(path)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf is not a GGUF file"):
        find_model(path)
    assert not [found for found in cache.iterdir() if not found.name.endswith(".lock")]


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made before is read without a lock; anything else is one line. A file is no folder, even for root."""
    path = tmp_path / "tiny.gguf"
    gguf_file.write(path, gguf_file.qwen2_model())
    made = find_model(path).folder
    assert made is not None
    lock = cache / f".{made.name}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # so that a lock cannot be taken
    assert find_model(path).folder == made
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ASR_DOGE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        CheckpointError, match=r"tiny\.gguf cannot be unpacked into .*file/cache/gguf \(Not a directory"
    ):
        find_model(path)


def test_a_folder_of_ctranslate2_gets_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"alignment_heads": []}')
    (tmp_path / "model.bin").write_bytes(b"")
    assert main(["info", "--model", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is CTranslate2's (as faster-whisper reads it): give the original, such as openai/whisper-base" in line
