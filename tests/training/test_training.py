"""A run learns, leaves loadable checkpoints of what it trained, and goes on after an interruption as if without one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import set_seed

from asr_doge.audio import read_audio
from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.cli.commands import parse_command
from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.manifest import Utterance, sample_utterances
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import ConfigError
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model, load_model, loading
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import score
from asr_doge.training import training
from tests.models import tiny
from tests.training.conftest import Finished, Train
from tests.training.runs import WEIGHTS, log_of, same_weights


def heard_by(checkpoint: Path, utterances: Sequence[Utterance]) -> list[str]:
    """Texts as evaluations compare them: greedy, of whole clips, without guards, by the published rule."""
    decoding = DecodingConfig(decoder="greedy", guard_silence=False, guard_length=False, guard_loops=False)
    recognizer = Recognizer(load_model(checkpoint, device="cpu"), decoding)
    texts = [recognizer.recognize([read_audio(utterance.audio_path)])[0].text for utterance in utterances]
    return [normalize_for_scoring(text, "en", "clean") for text in texts]


def test_an_evaluation_and_the_benchmark_find_the_same(run: Train, corpus: Path, tmp_path: Path) -> None:
    """Of the same utterances: recordings whole, no guards, one rule; the raw texts have capitals and commas."""
    dev = [
        replace(utterance, raw_text=f"{utterance.text.upper()}, well.", text=f"{utterance.text} well")
        for utterance in read_manifest(corpus / "dev_manifest.json")
    ]
    manifest = corpus / "spelled.json"
    write_manifest(manifest, dev)
    run(tmp_path / "run", epochs=1, eval_steps=3, save_steps=3, dev_manifest=str(manifest))
    config = BenchmarkConfig(
        str(tmp_path / "run" / "final"),
        test_manifest=str(manifest),
        output_dir=str(tmp_path),
        device="cpu",
        num_speed_runs=1,
        batch_sizes=[],
        max_samples=0,
    )
    found = ASRDogeBenchmark(config).run_full_benchmark()
    (logged,) = [entry for entry in log_of(tmp_path / "run") if "eval_cer" in entry]
    assert (found.accuracy.wer, found.accuracy.cer) == pytest.approx((logged["eval_wer"], logged["eval_cer"]))
    lines = (tmp_path / "run" / "hypotheses.jsonl").read_text().splitlines()
    heard = {line["id"]: (line["reference"], line["hypothesis"]) for line in map(json.loads, lines)}
    assert heard == {sample.id: (sample.reference, sample.hypothesis) for sample in found.samples}


@pytest.mark.parametrize("choice", ["none", "lora", "full"])
def test_a_run_leaves_what_it_trained(finished: Finished, choice: str) -> None:
    output_dir, result = finished(train_language_model=choice)
    assert (result.best_dir, result.final_dir, result.steps) == (output_dir / "best", output_dir / "final", 12)
    for folder in (result.best_dir, result.final_dir):
        loaded = load_model(folder, device="cpu")
        stored = load_file(folder / WEIGHTS)
        assert stored.keys() == {name for name, p in loaded.model.named_parameters() if p.requires_grad}
        assert loaded.model.config.train_language_model == choice
        assert {name.partition(".")[0] for name in stored} == (
            {"adapter"} if choice == "none" else {"adapter", "language_model"}
        )
        assert all(".lora_" in name for name in stored if choice == "lora" and name.startswith("language_model"))
        assert Transcriber(loaded).transcribe([tiny.random_waveform(0.6)])
    folders = {path.name for path in output_dir.iterdir()}
    own = {"best", "final", "checkpoint-8", "checkpoint-12", "hypotheses.jsonl", "run.json", "train_config.yaml"}
    assert folders - {"runs"} == own  # the former is TensorBoard's, where it is installed
    if choice != "full":  # resuming needs the optimizer of what is trained, and of nothing else
        assert (output_dir / "checkpoint-12" / WEIGHTS).stat().st_size < 100_000


def test_every_weight_that_should_learn_does_and_no_other(
    finished: Finished, granite_folder: Path, doge_folder: Path
) -> None:
    for choice in ("none", "full"):
        set_seed(0)
        start = assemble_model(
            granite_folder, doge_folder, device="cpu", adapter_hidden_dim=32, train_language_model=choice
        ).model.state_dict()
        _, result = finished(train_language_model=choice)
        end = load_model(result.final_dir, device="cpu").model.state_dict()
        moved = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])}
        trained = ("adapter.",) if choice == "none" else ("adapter.", "language_model.")
        assert moved == {name for name in end if name.startswith(trained) and not name.endswith("inv_freq")}


def test_eight_clips_are_learnt_by_heart(
    run: Train, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MAX_NEW_TOKENS", 40)
    eight = read_manifest(corpus / "train_manifest.json")[:8]
    write_manifest(tmp_path / "eight.json", eight)
    manifest = str(tmp_path / "eight.json")
    result = run(
        tmp_path / "run",
        train_manifest=manifest,
        dev_manifest=manifest,
        train_language_model="full",
        batch_size=8,
        epochs=60,
        warmup_steps=5,
        eval_steps=20,
        save_steps=20,
    )
    losses = [entry["loss"] for entry in log_of(tmp_path / "run") if "loss" in entry]
    assert losses[-1] < 0.1 * losses[0]
    assert result.dev_cer < 0.3
    heard = heard_by(result.best_dir, eight)
    assert score([u.text for u in eight], heard).cer == pytest.approx(result.dev_cer)


def test_the_adapter_alone_learns_too(run: Train, tmp_path: Path) -> None:
    run(tmp_path, epochs=20, batch_size=12, learning_rate=2e-2, eval_steps=5, save_steps=10)
    losses = [entry["loss"] for entry in log_of(tmp_path) if "loss" in entry]
    assert losses[-1] < 0.85 * losses[0]


def test_cached_and_computed_features_train_alike(run: Train, finished: Finished, tmp_path: Path) -> None:
    """Equality 3, over a run."""
    folder, _ = finished(train_language_model="none")
    run(tmp_path / "computed", features_dir="")
    for cached, computed in zip(log_of(folder), log_of(tmp_path / "computed"), strict=True):
        assert cached == pytest.approx(computed, rel=1e-3)


def test_utterances_are_told_their_language(run: Train, corpus: Path, tmp_path: Path) -> None:
    """With and without a feature cache; the checkpoint keeps the template, and the dev rates are told apart."""
    for split in ("train", "dev"):
        utterances = read_manifest(corpus / f"{split}_manifest.json")
        spoken = [replace(one, language=(None, "en", "de")[index % 3]) for index, one in enumerate(utterances)]
        write_manifest(tmp_path / f"{split}_manifest.json", spoken)

    def trained(name: str, **options: Any) -> list[dict[str, Any]]:
        run(tmp_path / name, data_dir=str(tmp_path), epochs=2, **options)
        return log_of(tmp_path / name)

    template = "the {language} sea: "
    told = trained("told", prompt_template=template)
    computed = trained("computed", prompt_template=template, features_dir="")
    assert all(one == pytest.approx(other, rel=1e-3) for one, other in zip(told, computed, strict=True))
    assert told != trained("plain")
    assert {"eval_cer_de", "eval_wer_en"} <= [entry for entry in told if "eval_cer" in entry][-1].keys()
    loaded = load_model(tmp_path / "told" / "best", device="cpu")
    assert loaded.processor.prompt_template == loaded.model.config.prompt_template == template


def test_workers_change_nothing(run: Train, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(tmp_path / str(workers), features_dir="", num_workers=workers, epochs=2, eval_steps=3, save_steps=3)
    assert same_weights(tmp_path / "0" / "final", tmp_path / "2" / "final")


def test_best_is_the_checkpoint_of_lowest_dev_cer(run: Train, corpus: Path, tmp_path: Path) -> None:
    dev = read_manifest(corpus / "dev_manifest.json")
    result = run(tmp_path, train_language_model="lora", epochs=8, eval_steps=2, save_steps=4, learning_rate=8e-2)
    cers = [entry["eval_cer"] for entry in log_of(tmp_path) if "eval_cer" in entry]
    assert len(cers) == 12
    assert len(set(cers)) > 1
    assert result.dev_cer == min(cers)
    assert score([u.text for u in dev], heard_by(result.best_dir, dev)).cer == pytest.approx(min(cers))
    last_is_best = cers.index(min(cers)) == len(cers) - 1
    assert same_weights(result.best_dir, result.final_dir) == last_is_best


def test_a_run_that_ends_between_evaluations_is_evaluated_at_its_end(run: Train, tmp_path: Path) -> None:
    result = run(tmp_path, epochs=1, eval_steps=100, save_steps=100)
    assert result.steps == 3
    assert 0 < result.dev_cer < 5
    assert same_weights(result.best_dir, result.final_dir)


def test_training_stops_when_the_dev_set_gets_no_better(run: Train, tmp_path: Path) -> None:
    assert run(tmp_path, learning_rate=0.0, eval_steps=1, save_steps=1, patience=2).steps == 3


def test_only_so_many_dev_utterances_are_transcribed(run: Train, tmp_path: Path, corpus: Path) -> None:
    (chosen,) = sample_utterances(read_manifest(corpus / "dev_manifest.json"), 1)
    assert chosen.id != "dev-0"  # else the first would do as well
    result = run(tmp_path, epochs=1, eval_samples=1)
    assert score([chosen.text], heard_by(result.best_dir, [chosen])).cer == pytest.approx(result.dev_cer)


def test_the_same_seed_gives_the_same_weights(run: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed, epochs=1)
    assert same_weights(tmp_path / "a" / "final", tmp_path / "b" / "final")
    assert not same_weights(tmp_path / "a" / "final", tmp_path / "c" / "final")


def test_a_new_run_does_not_touch_an_older_one(run: Train, tmp_path: Path) -> None:
    """Else `latest` could be the older run's last checkpoint, and the rotation would delete either's."""
    run(tmp_path, seed=1, epochs=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match="holds the checkpoints of another run: go on with it by --resume"):
        run(tmp_path, seed=2, epochs=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_settings_are_kept_and_can_be_given_again(run: Train, tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1, seed=7)
    path = tmp_path / "run" / training.CONFIG_NAME
    kept = yaml.safe_load(path.read_text())
    assert kept["seed"] == 7
    config = parse_command("train", ["--config", str(path)])
    assert asdict(config) == kept


def test_batches_of_evaluation_change_no_text(run: Train, tmp_path: Path) -> None:
    found = []
    by: dict[str, dict[str, Any]] = {"count": {"batch_size": 12}, "seconds": {"batch_seconds": 2.0}}
    for name, options in by.items():
        run(tmp_path / name, learning_rate=0.0, epochs=1, eval_steps=1, save_steps=1, patience=1, **options)
        losses = [entry["eval_loss"] for entry in log_of(tmp_path / name) if "eval_loss" in entry]
        found.append(((tmp_path / name / "hypotheses.jsonl").read_text(), pytest.approx(losses[0], rel=1e-5)))
    assert found[0] == found[1]
