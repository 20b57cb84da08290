"""What a step computes: batches, losses and gradients."""

import math
import shutil
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from asr_doge.audio import read_audio
from asr_doge.data import read_manifest
from asr_doge.data.feature_shards import read_header
from asr_doge.errors import TrainingError
from asr_doge.models import assemble_model, load_model
from asr_doge.training.arguments import use_one_device
from asr_doge.training.datasets import SpeechDataset, collate_examples
from asr_doge.training.trainer import SpeechTrainer
from tests.models import tiny
from tests.training.conftest import Train


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
