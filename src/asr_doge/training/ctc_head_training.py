"""The `pretrain ctc_head` command: train a CTC head on a frozen encoder's cached features.

Promises: neither the encoder nor any recording is read; `best` is always a complete head folder, that of the lowest dev
CER so far; `--resume_from latest` continues an interrupted run and gives the same weights; at the end the mean of the
newest checkpoints is evaluated too, and the dev set decides.
It does not know the network of the head (see `asr_doge.models.ctc_head`).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.data.atomic_writing import check_writable, write_atomically
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, manifest_path, read_manifest, sample_utterances
from asr_doge.errors import ConfigError, DataError
from asr_doge.models import CTCHeadConfig, find_device
from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings
from asr_doge.models.ctc_head_checkpoints import FoundEncoder, find_speech_encoder, save_head
from asr_doge.models.ctc_vocabulary import CTCVocabulary
from asr_doge.models.encoders import encoder_family
from asr_doge.models.encoders.loading import encoder_fingerprint, feature_source
from asr_doge.models.weights import read_weights
from asr_doge.training.arguments import arguments_on, logging_steps
from asr_doge.training.callbacks import MarkComplete, train_until_stopped
from asr_doge.training.ctc_examples import CTCExamples
from asr_doge.training.ctc_trainer import CTCHeadStage, CTCTrainer
from asr_doge.training.pretraining_configuration import PretrainCTCHeadConfig
from asr_doge.training.processes import process_count
from asr_doge.training.record import describe_data, describe_machine, write_record
from asr_doge.training.resuming import Lineage, changes_since, checkpoint_to_resume, is_complete, remove_old

CONFIG_NAME = "pretrain_ctc_head_config.yaml"
"""Settings of the run in `output_dir`, for `--config`."""
HYPOTHESES_NAME = "hypotheses.tsv"
"""File in `output_dir` with id, reference and hypothesis of the dev utterances at the last evaluation."""


@dataclass(frozen=True)
class CTCHeadResult:
    """Result of a run; rates are those of `best` on the dev set, as fractions."""

    best_dir: Path
    steps: int
    dev_wer: float
    dev_cer: float
    is_average: bool


def pretrain_ctc_head(config: PretrainCTCHeadConfig) -> CTCHeadResult:
    """Run the command.

    Raises:
        ASRDogeError: data, encoder or flags that cannot be used, or a run that cannot be continued.
        KeyboardInterrupt: after Ctrl-C, with the run saved.
    """
    _check_flags(config)
    output_dir = Path(config.output_dir)
    check_writable(output_dir)
    checkpoint = checkpoint_to_resume(config.resume_from, output_dir)
    set_seed(config.seed)
    found = find_speech_encoder(config.speech_encoder, config.encoder_window)
    cache, source = _open_cache(config, found)
    train_set = _readable(read_manifest(manifest_path("train", config.data_dir, config.train_manifest)), cache)
    dev_set = _readable(read_manifest(manifest_path("dev", config.data_dir, config.dev_manifest)), cache)
    dev_set = sorted(sample_utterances(dev_set, config.eval_samples), key=lambda utterance: utterance.duration)
    data = describe_data({"train": train_set, "dev": dev_set})
    _require_same_run(config, checkpoint, data)
    head, head_config = _head(config, found, train_set, cache, source)
    trainer = _trainer(config, head, _that_fit(train_set, cache, head), dev_set, cache)
    trainer.add_callback(_KeepBest(trainer, head_config, output_dir))
    parameters = sum(parameter.numel() for parameter in head.parameters())
    print(
        f"CTC head: {head.settings.type}, {parameters:,} parameters, {len(head.vocabulary) - 1}"
        f" {head.vocabulary.units}; {len(trainer.batches):,} steps an epoch"
    )
    lineage = Lineage.going_on(checkpoint)
    record = {
        **asdict(lineage),
        "config": asdict(config),
        "data": data,
        "parameters": {"ctc_head": parameters},
        "machine": describe_machine(trainer.args.device, 1),
        "resumed_from": checkpoint.name if checkpoint else None,
    }
    trainer.add_callback(MarkComplete(config.average, lineage, record))
    remove_old(output_dir, lineage, config.average, spare_left_behind=True)
    write_atomically(output_dir / CONFIG_NAME, yaml.safe_dump(asdict(config), sort_keys=False).encode())
    write_record(output_dir, record)
    if train_until_stopped(trainer, checkpoint):
        raise KeyboardInterrupt
    result = _with_average(trainer, config, head_config)
    reached = {
        "steps": result.steps,
        "dev_wer": result.dev_wer,
        "dev_cer": result.dev_cer,
        "average": result.is_average,
    }
    write_record(output_dir, {**record, "result": reached})
    return result


def _require_same_run(config: PretrainCTCHeadConfig, checkpoint: Path | None, data: dict[str, Any]) -> None:
    """Refuse to continue with settings or data other than those the run began with."""
    changed = changes_since(checkpoint, asdict(config), data, 1) if checkpoint is not None else []
    if changed:
        raise ConfigError(f"--resume_from {checkpoint}: that run had {'; '.join(changed)}: give what it had")


def _check_flags(config: PretrainCTCHeadConfig) -> None:
    if process_count() > 1:
        raise ConfigError("pretrain ctc_head is the work of one process: start it without torchrun")
    for name in ("stack", "hidden_dim", "layers", "batch_seconds", "epochs", "eval_steps", "eval_samples", "average"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must be more than 0")
    for name in ("dropout", "time_masking"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: choose a share from 0 to below 1")


def _open_cache(config: PretrainCTCHeadConfig, found: FoundEncoder) -> tuple[FeatureCache, Mapping[str, Any]]:
    """The features, which must be this encoder's, and the description of what computed them."""
    fingerprint = encoder_fingerprint(found.reference, found.config)
    if found.fingerprint not in (None, fingerprint):
        raise ConfigError(
            f"--speech_encoder {config.speech_encoder}: its encoder is no longer the one it was trained on"
        )
    extractor = encoder_family(found.config).feature_extractor(found.config)
    source = feature_source(fingerprint, found.config, extractor)
    folder = config.features_dir or str(Path(config.data_dir) / "features")
    return FeatureCache.open(folder, expected_source=source), source


def _readable(utterances: Sequence[Utterance], cache: FeatureCache) -> list[Utterance]:
    """The utterances that have features."""
    readable = [utterance for utterance in utterances if utterance.id not in cache.unreadable]
    cache.require_fresh(readable)
    if not readable:
        raise DataError("not one utterance could be read when the features were made")
    return readable


def _that_fit(utterances: Sequence[Utterance], cache: FeatureCache, head: CTCHead) -> list[Utterance]:
    """The utterances whose text is not empty and has a frame of the head for each label."""
    fit = []
    for utterance in utterances:
        needed = _frames_needed(head.vocabulary.ids(utterance.text))
        copies = range(cache.num_copies(utterance.id))
        frames = min(-(-cache.num_embeddings(utterance.id, copy) // head.stack) for copy in copies)
        if needed <= frames:
            fit.append(utterance)
    left_out = len(utterances) - len(fit)
    if left_out:
        print(
            f"left out: {left_out} of {len(utterances)} utterances, whose text is too long for the clip",
            file=sys.stderr,
        )
    if not fit:
        raise DataError("no text fits on its clip: give a smaller --stack, or --units bpe")
    return fit


def _frames_needed(ids: Sequence[int]) -> int:
    """One frame for each label, plus a blank between two equal ones."""
    return len(ids) + sum(first == second for first, second in pairwise(ids))


def _head(
    config: PretrainCTCHeadConfig,
    found: FoundEncoder,
    train_set: Sequence[Utterance],
    cache: FeatureCache,
    source: Mapping[str, Any],
) -> tuple[CTCHead, CTCHeadConfig]:
    """The head to train, and the configuration of its folder."""
    settings = _settings(config, found, train_set)
    head = CTCHead(settings, cache[train_set[0].id].shape[1])
    if found.head is not None:
        head.load_state_dict(read_weights(found.head[0], lambda key: key))
    head_config = CTCHeadConfig(
        encoder_config=found.config,
        speech_encoder=found.reference.pointer,
        speech_encoder_revision=found.reference.commit,
        speech_encoder_fingerprint=cast(str, source["encoder_fingerprint"]),
        ctc_head=settings.values(),
    )
    return head, head_config


def _settings(config: PretrainCTCHeadConfig, found: FoundEncoder, train_set: Sequence[Utterance]) -> CTCHeadSettings:
    """Settings of the head to continue from, or of a new one for the training texts."""
    if found.head is not None:
        return CTCHeadSettings.read({**(found.ctc_head or {}), "dropout": config.dropout})
    texts = [utterance.text for utterance in train_set]
    if config.units == "bpe":
        vocabulary = CTCVocabulary.of_pieces(texts, config.vocab_size)
    else:
        vocabulary = CTCVocabulary.of_characters(texts)
    return CTCHeadSettings.read(
        {
            "tokens": list(vocabulary.tokens),
            "merges": [list(merge) for merge in vocabulary.merges],
            "type": config.head_type,
            "stack": config.stack,
            "hidden_dim": config.hidden_dim,
            "layers": config.layers,
            "dropout": config.dropout,
        }
    )


def _trainer(
    config: PretrainCTCHeadConfig,
    head: CTCHead,
    train_set: Sequence[Utterance],
    dev_set: Sequence[Utterance],
    cache: FeatureCache,
) -> CTCTrainer:
    """The Trainer with its data."""
    ids = head.vocabulary.ids
    embeddings = sum(cache.num_embeddings(utterance.id) for utterance in dev_set)
    return CTCTrainer(
        CTCHeadStage(head),
        _arguments(config),
        CTCExamples(train_set, cache, ids, config.seed, varied=True, masked=config.time_masking),
        CTCExamples(dev_set, cache, ids),
        config.batch_seconds,
        embeddings / sum(utterance.duration for utterance in dev_set),
        head.vocabulary.text,
    )


def _arguments(config: PretrainCTCHeadConfig) -> TrainingArguments:
    return arguments_on(
        find_device(config.device),
        TrainingArguments,
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_steps=config.eval_steps,
        metric_for_best_model="cer",
        greater_is_better=False,
        logging_steps=logging_steps(config.eval_steps),
        report_to="none",
        seed=config.seed,
    )


class _KeepBest(TrainerCallback):
    """Write `best` and the hypotheses whenever an evaluation has the lowest dev CER so far."""

    def __init__(self, trainer: CTCTrainer, head_config: CTCHeadConfig, folder: Path) -> None:
        self.trainer = trainer
        self.head_config = head_config
        self.folder = folder

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **report: Any) -> None:
        """Compare with `state.best_metric`, which the Trainer updates after this call and keeps over a resume."""
        dev = cast(CTCExamples, self.trainer.eval_dataset)
        rows = zip(dev.utterances, self.trainer.hypotheses, strict=True)
        lines = (f"{utterance.id}\t{utterance.text}\t{hypothesis}\n" for utterance, hypothesis in rows)
        write_atomically(self.folder / HYPOTHESES_NAME, "".join(lines).encode("utf-8", "backslashreplace"))
        if state.best_metric is None or report["metrics"]["eval_cer"] < state.best_metric:
            stage = cast(CTCHeadStage[CTCHead], self.trainer.accelerator.unwrap_model(self.trainer.model))
            save_head(self.folder / "best", self.head_config, stage.head.state_dict())


def _with_average(trainer: CTCTrainer, config: PretrainCTCHeadConfig, head_config: CTCHeadConfig) -> CTCHeadResult:
    """Evaluate the end of the run and the mean of the newest checkpoints; the best of all by dev CER is `best`."""
    output_dir = Path(config.output_dir)
    evaluations = [entry for entry in trainer.state.log_history if "eval_cer" in entry]
    if not evaluations or trainer.state.global_step % config.eval_steps:
        trainer.evaluate()
        evaluations = [entry for entry in trainer.state.log_history if "eval_cer" in entry]
    best = min(evaluations, key=lambda entry: entry["eval_cer"])
    is_average = False
    folders = [Path(folder) for folder in sort_checkpoints(config.output_dir)]
    folders = [folder for folder in folders if is_complete(folder)][-config.average :]  # older ones are already removed
    if len(folders) > 1:
        stage = cast(CTCHeadStage[CTCHead], trainer.accelerator.unwrap_model(trainer.model))
        stage.load_state_dict(mean_weights([load_file(folder / SAFE_WEIGHTS_NAME) for folder in folders]))
        trainer.state.best_metric = best["eval_cer"]
        averaged = trainer.evaluate()
        if averaged["eval_cer"] < best["eval_cer"]:
            best, is_average = averaged, True
    return CTCHeadResult(output_dir / "best", trainer.state.global_step, best["eval_wer"], best["eval_cer"], is_average)


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states of one module; for integer values such as counters, the last."""
    last = states[-1]
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if last[name].is_floating_point()
        else last[name]
        for name in last
    }
