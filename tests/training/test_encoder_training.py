"""A small encoder is trained from nothing, and what is written is a speech encoder like any other."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr_doge.cli import main
from asr_doge.data.digits import DIGIT_WORDS, DigitClip
from asr_doge.models import load_encoder_alone
from asr_doge.models.encoders.seanet import SEANetSpeechEncoder
from asr_doge.training.encoder_training import dev_scores, new_encoder
from asr_doge.training.pretraining_configuration import PretrainEncoderConfig
from tests.models import tiny


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the place of digits, of two speakers."""
    folder = tmp_path_factory.mktemp("fsdd")
    for speaker in ("lucas", "theo"):
        for digit in range(len(DIGIT_WORDS)):
            for take in (0, 7):
                sound = tiny.random_waveform(0.25, seed=digit)[::2]
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", sound, 8_000)
    return folder


@pytest.mark.parametrize("architecture", ["seanet", "conformer"])
def test_the_encoder_of_a_run_loads_with_its_head(
    architecture: str, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--hidden_dim", "32", "--layers", "1", "--num_filters", "2", "--batch_size", "2", "--num_workers", "0"]
    flags = ["--architecture", architecture, "--digits_dir", str(digits_dir), "--output_dir", str(tmp_path)]
    run = ["pretrain", "encoder", *flags, *shape, "--steps", "2", "--dev_strings", "3"]
    assert main(run) == 0
    printed = capsys.readouterr().out
    assert "2 steps: WER" in printed
    assert printed.rstrip().endswith(f"speech encoder: {tmp_path / 'encoder'}")
    loaded = load_encoder_alone(tmp_path / "encoder", device="cpu")
    assert loaded.encoder.has_ctc
    assert loaded.encoder.ctc_text(loaded.encoder.ctc_ids("nine one")) == "nine one"
    trained = loaded.encoder.state_dict()
    assert all(tensor.isfinite().all() for tensor in trained.values() if tensor.is_floating_point())

    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*/*.safetensors")}
    assert finished
    assert main(run) == 0  # goes on from the end, and so does nothing
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoint-*/*.safetensors")} == finished
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]


def test_scores_count_words_that_were_not_said() -> None:
    encoder = new_encoder(PretrainEncoderConfig("", architecture="seanet", hidden_dim=8, num_filters=2))
    assert isinstance(encoder, SEANetSpeechEncoder)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.zero_()
        encoder.lm_head.bias[0] = 1.0  # only blanks
    clips = [DigitClip(np.ones(4000, dtype=np.float32), ["one", "two"], "lucas")]
    assert dev_scores(encoder.eval(), clips).wer == 1.0
    with torch.no_grad():
        encoder.lm_head.bias[encoder.ctc_ids("x")[0]] = 2.0
    scores = dev_scores(encoder, clips)
    assert scores.wer == 1.0  # "x" for "one", and "two" is missing
    assert scores.cer == 1.0


def test_what_cannot_be_trained_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "encoder", "--digits_dir", "none", "--hidden_dim", "40"]) == 2
    assert "--hidden_dim 40: the conformer needs a multiple of 32" in capsys.readouterr().err
