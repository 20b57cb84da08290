"""A CTC head's folder, which has no language model, is measured by the same command."""

import json
from pathlib import Path

from asr_doge.benchmark import BenchmarkConfig
from asr_doge.cli import main
from asr_doge.data import read_manifest
from asr_doge.inference.transcription import load
from tests import speech


def test_its_texts_are_those_of_transcribing(head_folder: Path, tmp_path: Path) -> None:
    corpus = speech.write_corpus(tmp_path / "processed", train=1, dev=1, test=4)
    folders = [
        "--checkpoint_dir",
        str(head_folder),
        "--data_dir",
        str(corpus),
        "--output_dir",
        str(tmp_path / "report"),
    ]
    options = ["--num_speed_runs", "1", "--num_warmup_runs", "0", "--batch_sizes", "2", "--device", "cpu"]
    assert main(["benchmark", *folders, *options, "--guard_silence", "false"]) == 0  # nobody speaks in these clips
    (path,) = (tmp_path / "report").glob("benchmark_*.json")
    report = json.loads(path.read_text())
    settings = BenchmarkConfig(guard_silence=False)
    transcriber = load(head_folder, device="cpu", decoding=settings)
    texts = [transcriber.transcribe(sample.audio_path).text for sample in read_manifest(corpus / "test_manifest.json")]
    assert [sample["raw_hypothesis"] for sample in report["samples"]] == texts
    assert any(texts)
    assert report["model"]["ctc_head"] == "conformer"
    assert (report["parameters"]["adapter"], report["parameters"]["language_model"]) == (0, 0)
    assert report["speed"]["language_model_passes"] == 0
    assert report["speed"]["tokens_per_second"] > 0
