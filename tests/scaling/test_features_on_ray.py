"""`features` on a cluster: a recording that ends its decoder costs itself alone, and is named."""

from pathlib import Path
from typing import Any

import pytest

from asr_doge.audio.file_decoding import FileDecoder
from asr_doge.cli import features
from asr_doge.data.manifest import read_manifest
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.scaling.configuration import FeaturesJobConfig
from tests import speech
from tests.scaling.fragile.sitecustomize import CRASHES


def test_a_recording_that_crashes_its_decoder_is_named(
    cluster: Any, tmp_path: Path, granite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = speech.write_corpus(tmp_path / "corpus")
    bad = read_manifest(corpus / "train_manifest.json")[3]
    Path(bad.audio_path).write_bytes(CRASHES)
    settings: dict[str, Any] = {"data_dir": str(corpus), "speech_encoder": str(granite_folder), "device": "cpu"}
    decoder = FileDecoder(500_000_000)
    alone = FeaturesConfig(output_dir=str(tmp_path / "alone"), shard_minutes=0.1, **settings)
    report = compute_features(alone, decoder.read_clip)
    decoder.close()
    assert (report.encoded, len(report.failed)) == (15, 1)
    capsys.readouterr()
    shared = FeaturesJobConfig(
        output_dir=str(tmp_path / "shared"), engine="ray", workers="2", shard_minutes=0.1, **settings
    )
    assert features.run(shared) == 0
    told = capsys.readouterr()
    assert f"left out: {bad.audio_path} crashes its decoder (SIGSEGV): convert it to WAV or FLAC." in told.err
    assert "15 utterances encoded, 0 kept, 1 unreadable" in told.out
    files = sorted(path.name for path in (tmp_path / "alone").glob("*.safetensors"))
    assert len(files) > 1
    for name in files:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
