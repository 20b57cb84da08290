"""A run learns, leaves loadable checkpoints of what it trained, and goes on after an interruption as if without one."""

import json
import math
import shutil
import struct
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

from asr_doge.audio import read_audio
from asr_doge.benchmark import ASRDogeBenchmark, BenchmarkConfig
from asr_doge.cli.commands import parse_command
from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_shards import read_header
from asr_doge.data.manifest import Utterance, sample_utterances
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import AudioError, CheckpointError, ConfigError, DataError, TrainingError
from asr_doge.inference.configuration import FeaturesConfig
from asr_doge.inference.features import compute_features
from asr_doge.inference.transcription import Transcriber
from asr_doge.models import assemble_model, load_model, loading
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import score
from asr_doge.training import checking, training
from asr_doge.training.arguments import use_one_device
from asr_doge.training.datasets import (
    CachedSpeechDataset,
    Example,
    SpeechDataset,
    UtteranceDataset,
    collate_examples,
)
from asr_doge.training.record import read_record
from asr_doge.training.trainer import SpeechTrainer
from tests import speech
from tests.models import tiny
from tests.training.conftest import Finished, Train
from tests.training.runs import WEIGHTS, log_of, same_weights
from tests.training.test_resuming import at_step


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


def test_training_goes_on_without_what_features_could_not_read(
    run: Train, granite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = speech.write_corpus(tmp_path / "data", train=5, dev=2, test=2)
    broken = read_manifest(data / "train_manifest.json")[1]
    broken.audio_path.write_bytes(b"RIFF, but no sound")
    report = compute_features(FeaturesConfig(str(data), speech_encoder=str(granite_folder), device="cpu"))
    result = run(tmp_path / "run", data_dir=str(data), features_dir=str(report.folder), epochs=1)
    assert result.steps == 1
    assert "left out: 1 of 5 utterances that cannot be read" in capsys.readouterr().out


def test_the_settings_are_kept_and_can_be_given_again(run: Train, tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1, seed=7)
    path = tmp_path / "run" / training.CONFIG_NAME
    kept = yaml.safe_load(path.read_text())
    assert kept["seed"] == 7
    config = parse_command("train", ["--config", str(path)])
    assert asdict(config) == kept


def test_accumulated_gradients_are_those_of_the_whole_batch(
    corpus: Path, granite_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    """The clips have texts of several lengths: a mean of the micro-batches' means is another loss."""
    dataset_ids = read_manifest(corpus / "train_manifest.json")[:4]
    logs, ends = [], []
    for size in (4, 2, 1):
        loaded = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64)
        tiny.randomize(loaded.model.adapter, seed=1)
        dataset = SpeechDataset(dataset_ids, loaded.processor)
        assert len({len(dataset[index]["labels"]) for index in range(4)}) > 1
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=1,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=True,
        )
        trainer = Seq2SeqTrainer(loaded.model, arguments, data_collator=collate_examples, train_dataset=dataset)
        with torch.no_grad():
            whole = float(loaded.model(**collate_examples([dataset[index] for index in range(4)])).loss)
        trainer.train()
        logs.append((whole, trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]))
        ends.append({name: p.detach() for name, p in loaded.model.named_parameters() if p.requires_grad})
    for whole, loss, _ in logs:
        assert loss == pytest.approx(whole, rel=1e-4)
    for _, _, norm in logs[1:]:
        assert norm == pytest.approx(logs[0][2], rel=1e-4)
    for end in ends[1:]:
        assert all(torch.allclose(end[name], weight, rtol=1e-6, atol=1e-9) for name, weight in ends[0].items())


def test_one_device_is_used_and_it_is_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it shows without several GPUs."""
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 4
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    use_one_device(arguments, torch.device("cuda:1"))
    assert (arguments.n_gpu, arguments.device, current) == (1, torch.device("cuda:1"), [1])
    assert arguments.train_batch_size == arguments.per_device_train_batch_size


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"eval_steps": 4, "save_steps": 6}, "save_steps"),
        ({"eval_steps": 0}, "eval_steps"),
        ({"save_steps": 0}, "save_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"eval_samples": 0}, "eval_samples"),
        ({"num_workers": -1}, "num_workers"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"adapter_hidden_dim": 0}, "adapter_hidden_dim"),
        ({"adapter_type": "none"}, "adapter_type"),
        ({"prompt_template": "in {language}: "}, "--prompt_template names the language, which no utterance"),
        ({"prompt_template": "in {lang}: "}, "prompt_template 'in {lang}: ': only"),
        ({"train_language_model": "some"}, "train_language_model"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_settings_that_cannot_work_are_refused(run: Train, tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_is_not_installed_is_named(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--wandb_project needs the package wandb: pip install 'asr-doge\[wandb\]'"):
        run(tmp_path / "run", wandb_project="speech")
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(run: Train, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/train_manifest.json does not exist"):
        run(tmp_path / "run", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nothing.json does not exist"):
        run(tmp_path / "run", dev_manifest=str(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="no feature cache"):
        run(tmp_path / "run", features_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match="no-model"):
        run(tmp_path / "run", language_model=str(tmp_path / "no-model"))


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(run: Train, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/run cannot be made: .*/file is a file; choose another folder"):
        run(tmp_path / "file" / "run", language_model="not/looked-at")


def test_a_dev_set_without_utterances_is_named(run: Train, tmp_path: Path) -> None:
    (tmp_path / "dev.json").touch()
    with pytest.raises(DataError, match=r"dev.json holds no utterances"):
        run(tmp_path / "run", dev_manifest=str(tmp_path / "dev.json"))


def test_texts_longer_than_the_language_model_reads_are_named(run: Train, tmp_path: Path, corpus: Path) -> None:
    train = read_manifest(corpus / "train_manifest.json")
    train[5] = replace(train[5], text="the quick fox " * 500)
    write_manifest(tmp_path / "train.json", train)
    with pytest.raises(DataError, match=r"^1 of 16 .* the 2,048 positions .*\(the first: 'train-5', \d,\d+\): leave"):
        run(tmp_path / "run", train_manifest=str(tmp_path / "train.json"))
    assert not (tmp_path / "run").exists()


def test_features_of_another_encoder_are_refused(run: Train, tmp_path: Path, granite_folder: Path) -> None:
    other = tmp_path / "encoder"
    tiny.granite_model(seed=9).save_pretrained(other)
    with pytest.raises(DataError, match=r"is of another encoder \(encoder_fingerprint .* with --overwrite"):
        run(tmp_path / "run", speech_encoder=str(other))


def test_features_that_are_missing_or_stale_are_refused(run: Train, tmp_path: Path, corpus: Path, cache: Path) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    speech.write_wav(data / "audio" / "train-3.wav", tiny.random_waveform(0.7, seed=99))
    with pytest.raises(DataError, match=r"is older than the recordings of 1 of 12 utterances \(the first: 'train-3'\)"):
        run(tmp_path / "run", data_dir=str(data), features_dir=str(cache))
    train = read_manifest(corpus / "train_manifest.json")
    write_manifest(tmp_path / "more.json", [*train, *speech.utterances(tmp_path, "more", 2)])
    with pytest.raises(DataError, match=r"lacks 2 of 14 utterances \(the first: 'more-0'\)"):
        run(tmp_path / "run", train_manifest=str(tmp_path / "more.json"))


@pytest.mark.parametrize("workers", [0, 1])
def test_recordings_that_cannot_be_read_are_named_and_left_out(
    run: Train, tmp_path: Path, corpus: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    broken = [data / "audio" / name for name in ("train-3.wav", "dev-1.wav")]
    for path in broken:
        path.write_bytes(b"RIFF, but no sound")
    short = speech.write_wav(data / "audio" / "train-5.wav", tiny.random_waveform(0.05))
    options: dict[str, Any] = {"data_dir": str(data), "features_dir": "", "num_workers": workers}
    assert run(tmp_path / "run", epochs=2, **options).steps == 6
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 3  # once each, in two epochs
    for path in (*broken, short):
        assert sum(str(path) in line for line in lines) == 1
    assert (read_record(tmp_path / "run") or {})["result"]["unreadable"] == 3
    with pytest.raises(AudioError, match=r"that makes 3 recordings .* more than --max_unreadable 2") as caught:
        run(tmp_path / "fewer", max_unreadable=2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_seconds": 0.5}], ids=str)
def test_a_recording_that_cannot_be_read_may_be_a_whole_batch(
    run: Train, tmp_path: Path, corpus: Path, batch: dict[str, Any]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    write_manifest(data / "train_manifest.json", read_manifest(data / "train_manifest.json")[:4])
    (data / "audio" / "train-3.wav").unlink()
    result = run(tmp_path / "run", data_dir=str(data), features_dir="", epochs=1, **batch)
    assert result.steps == 4
    assert (read_record(tmp_path / "run") or {})["result"]["unreadable"] == 1


@pytest.mark.parametrize("source", ["computed", "cached"])
def test_a_blank_row_changes_nothing(
    corpus: Path, cache: Path, granite_folder: Path, doge_folder: Path, source: str
) -> None:
    loaded = assemble_model(
        granite_folder, doge_folder, device="cpu", dtype=torch.float64, prompt_template="the {language} sea: "
    )
    utterances = [replace(one, language="de") for one in read_manifest(corpus / "train_manifest.json")[:2]]
    dataset: UtteranceDataset = SpeechDataset(utterances, loaded.processor)
    if source == "cached":
        dataset = CachedSpeechDataset(utterances, loaded.processor, FeatureCache.open(cache))

    def loss_and_gradient(examples: list[Example]) -> tuple[float, Tensor]:
        loaded.model.zero_grad()
        loss = loaded.model(**collate_examples(examples)).loss
        loss.backward()
        gradients = [p.grad for p in loaded.model.adapter.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])

    loss, gradient = loss_and_gradient([dataset[0], dataset[1]])
    with_blank, same_gradient = loss_and_gradient([dataset[0], dataset.blank(), dataset[1]])
    assert with_blank == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(same_gradient, gradient, rtol=1e-6)
    assert gradient.any()
    nothing, no_gradient = loss_and_gradient([dataset.blank()])
    assert nothing == 0
    assert not no_gradient.any()


def test_a_dev_recording_that_goes_amiss_is_left_out_of_evaluations(
    run: Train, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    at_step(monkeypatch, 2, (data / "audio" / "dev-1.wav").unlink)
    run(tmp_path / "run", data_dir=str(data), features_dir="", epochs=2, eval_steps=1, save_steps=1, batch_size=12)
    assert capsys.readouterr().err.count("dev-1.wav does not exist") == 1
    heard = [json.loads(line)["id"] for line in (tmp_path / "run" / "hypotheses.jsonl").read_text().splitlines()]
    assert sorted(heard) == ["dev-0", "dev-2", "dev-3"]


def test_batches_of_evaluation_change_no_text(run: Train, tmp_path: Path) -> None:
    found = []
    by: dict[str, dict[str, Any]] = {"count": {"batch_size": 12}, "seconds": {"batch_seconds": 2.0}}
    for name, options in by.items():
        run(tmp_path / name, learning_rate=0.0, epochs=1, eval_steps=1, save_steps=1, patience=1, **options)
        losses = [entry["eval_loss"] for entry in log_of(tmp_path / name) if "eval_loss" in entry]
        found.append(((tmp_path / name / "hypotheses.jsonl").read_text(), pytest.approx(losses[0], rel=1e-5)))
    assert found[0] == found[1]


def _part(content: bytes, start: int, stop: int) -> bytes:
    return content[start:stop]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_utterances(
    run: Train, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    poisoned = shutil.copytree(cache, tmp_path / "cache")
    for shard in poisoned.glob("*.safetensors"):
        content = shard.read_bytes()
        header = read_header(partial(_part, content), len(content))
        if "train-7" in header.entries:
            _, (_, width), first = header.tensors["embeddings"]
            start = first + header.entries["train-7"].copies[0].start * width * 4
            shard.write_bytes(content[:start] + struct.pack("<f", math.nan) + content[start + 4 :])
    with pytest.raises(
        TrainingError, match=r"the loss of step \d is not finite; its utterances: .*train-7\b"
    ) as caught:
        run(tmp_path / "run", features_dir=str(poisoned))
    assert str(caught.value).count("train-") == 4
    assert not (tmp_path / "run" / "final").exists()


def test_a_trainer_that_does_not_let_losses_be_checked_stops_the_run(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version of transformers would that renames its method."""
    monkeypatch.setattr(SpeechTrainer, "_get_grad_norm", Seq2SeqTrainer._get_grad_norm)
    with pytest.raises(TrainingError, match=r"^this transformers does not let losses be checked"):
        run(tmp_path / "run", epochs=1, gradient_accumulation_steps=2)


def test_batches_are_padded_where_the_model_does_not_look(
    corpus: Path, granite_folder: Path, doge_folder: Path
) -> None:
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64)
    tiny.randomize(loaded.model.adapter, seed=1)
    dataset = SpeechDataset(read_manifest(corpus / "train_manifest.json")[:5], loaded.processor)
    examples = [dataset[index] for index in range(len(dataset))]
    with torch.no_grad():
        together = loaded.model(**collate_examples(examples)).loss
        alone = [loaded.model(**collate_examples([example])).loss for example in examples]
    tokens = [len(example["labels"]) for example in examples]
    mean = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert abs(together - mean) < 1e-6 * mean  # the loss itself is computed in float32


def test_audio_is_heard_as_it_is_transcribed(corpus: Path, checkpoint_folder: Path) -> None:
    loaded = load_model(checkpoint_folder, device="cpu")
    (utterance, *_) = read_manifest(corpus / "train_manifest.json")
    example = SpeechDataset([utterance], loaded.processor)[0]
    features = loaded.processor(read_audio(utterance.audio_path), sampling_rate=16_000)["input_features"][0]
    assert torch.equal(example["input_features"], features)
    assert loaded.processor.batch_decode(example["labels"][None]) == [utterance.text]
    assert example["labels"][-1] == loaded.processor.tokenizer.eos_token_id


class CountNorms(TorchDispatchMode):
    """Counts norms, those of many tensors in one call as one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._foreach_norm.Scalar, torch.ops.aten.linalg_vector_norm.default)
        return func(*args, **(kwargs or {}))


def test_the_norm_of_the_gradients_is_computed_once_a_step(run: Train, tmp_path: Path) -> None:
    """Each gradient's, in one call, and that of them all: for clipping, for the log and to see that it is finite."""
    with CountNorms() as norms:
        result = run(tmp_path / "run", epochs=1, gradient_accumulation_steps=2)
    assert norms.count == 2 * result.steps
