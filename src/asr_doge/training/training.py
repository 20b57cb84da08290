"""The `train` verb: fit the adapter (and, if wanted, the language model) on processed speech.

Promises: transformers' Trainer with the published recipe as defaults; only what is trained is in the optimizer and the
checkpoints; an interrupted run resumes; the best model by dev CER is left in `OUTPUT/best`, the last in `OUTPUT/final`.
It does not compute features ahead (see `asr_doge.inference.features`) but uses a cache that it is given or finds.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    GenerationConfig,
    PreTrainedConfig,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.training_args import ParallelMode

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.batching import LengthBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances
from asr_doge.errors import AudioError, ConfigError, DataError
from asr_doge.models import ASRDogeProcessor, LoadedModel, assemble_model, find_device
from asr_doge.models.checkpoints import find_model
from asr_doge.models.encoders.loading import feature_source, settings
from asr_doge.models.modeling_asr_doge import load_asr_doge_config
from asr_doge.text.scoring import score
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.datasets import CachedSpeechDataset, SpeechDataset, UtteranceDataset, collate_examples
from asr_doge.training.sampling import SpeechTrainer

CONFIG_NAME = "train_config.yaml"
"""In `output_dir`, the settings of the run, to be given to `--config`."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind; `dev_cer` is that of `best`, as a fraction."""

    best_dir: Path
    final_dir: Path
    steps: int
    dev_cer: float


def train(config: TrainConfig) -> TrainResult:
    """Run the `train` verb.

    Raises:
        ASRDogeError: data, model parts or flags that cannot be used.
    """
    config = replace(config, features_dir=_features_folder(config))
    _check_flags(config)
    _check_variations(config)
    output_dir = Path(config.output_dir)
    checkpoint = _checkpoint_to_resume(config.resume_from, output_dir)
    set_seed(config.seed)
    train_set = read_manifest(Path(config.train_manifest or Path(config.data_dir) / "train_manifest.json"))
    dev_set = read_manifest(Path(config.dev_manifest or Path(config.data_dir) / "dev_manifest.json"))
    loaded = assemble_model(
        config.speech_encoder,
        config.language_model,
        prompt=config.prompt,
        device=config.device,
        adapter_type=config.adapter_type,
        adapter_hidden_dim=config.adapter_hidden_dim,
        adapter_stack=config.adapter_stack,
        adapter_output_norm=config.adapter_output_norm,
        train_language_model=config.train_language_model,
    )
    if checkpoint is not None:
        _require_same_model(checkpoint, loaded.model.config)
    loaded.model.config.max_audio_seconds = max(utterance.duration for utterance in train_set)
    generation_config = copy.deepcopy(loaded.model.generation_config)
    train_dataset = _dataset(config, train_set, loaded, training=True)
    trainer = SpeechTrainer(
        loaded.model,
        _training_arguments(config, output_dir),
        batches=_batches(config, train_dataset.utterances),
        data_collator=collate_examples,
        train_dataset=train_dataset,
        eval_dataset=_dataset(config, _shortest_first(sample_utterances(dev_set, config.eval_samples)), loaded),
        processing_class=loaded.processor,
        compute_metrics=_metrics(loaded.processor),
        callbacks=[LimitedPatience(config.patience), KeepBest(loaded, generation_config, output_dir / "best")],
    )
    write_atomically(output_dir / CONFIG_NAME, yaml.safe_dump(asdict(config), sort_keys=False).encode())
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except AudioError as error:  # raised in a worker process, it brings a traceback in its message
        last_line = str(error).strip().splitlines()[-1]
        raise AudioError(last_line.removeprefix(f"{AudioError.__module__}.{AudioError.__name__}: ")) from error
    if trainer.state.global_step % config.eval_steps:
        trainer.evaluate()
    loaded.model.generation_config = copy.deepcopy(generation_config)
    loaded.save(output_dir / "final")
    cers = [entry["eval_cer"] for entry in trainer.state.log_history if "eval_cer" in entry]
    return TrainResult(output_dir / "best", output_dir / "final", trainer.state.global_step, min(cers))


def _check_flags(config: TrainConfig) -> None:
    """Refuse, before anything is loaded, numbers that training could not use."""
    positive = ("adapter_hidden_dim", "adapter_stack", "batch_size", "epochs", "eval_samples", "eval_steps")
    for name in (*positive, "patience", "save_steps"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must be more than 0")
    if config.batch_seconds is not None and config.batch_seconds <= 0:
        raise ConfigError(f"--batch_seconds {config.batch_seconds} cannot be used: it must be more than 0")
    for name in ("embedding_noise", "learning_rate", "max_grad_norm", "num_workers", "warmup_steps", "weight_decay"):
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must not be negative")
    if config.save_steps % config.eval_steps:
        raise ConfigError(f"save_steps ({config.save_steps}) must be a multiple of eval_steps ({config.eval_steps})")
    if config.wandb_project is not None and not config.no_wandb and find_spec("wandb") is None:
        raise ConfigError("--wandb_project needs the package wandb: pip install 'asr-doge[wandb]', or give --no_wandb")


def _check_variations(config: TrainConfig) -> None:
    """Refuse to vary what the source of the features does not hold."""
    if not 0 <= config.frame_dropping < 1:
        raise ConfigError(f"--frame_dropping {config.frame_dropping} cannot be used: choose a share from 0 to below 1")
    if config.augment and config.features_dir:
        raise ConfigError(
            "--augment varies recordings, and a feature cache holds none: make copies by 'asr-doge features"
            ' --augment_copies\', or give --features_dir ""'
        )
    for name in ("frame_dropping", "embedding_noise"):
        if getattr(config, name) and not config.features_dir:
            raise ConfigError(f"--{name} varies cached features: run 'asr-doge features' first")


def _training_arguments(config: TrainConfig, output_dir: Path) -> Seq2SeqTrainingArguments:
    use_wandb = config.wandb_project is not None and not config.no_wandb
    if use_wandb:
        os.environ["WANDB_PROJECT"] = str(config.wandb_project)
        if config.wandb_entity:
            os.environ["WANDB_ENTITY"] = config.wandb_entity
    device = find_device(config.device)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
        save_total_limit=2,
        metric_for_best_model="cer",
        greater_is_better=False,
        predict_with_generate=True,
        logging_steps=min(25, config.eval_steps),
        dataloader_pin_memory=device.type == "cuda",
        report_to="wandb" if use_wandb else "none",
        run_name=config.wandb_run_name,
        dataloader_num_workers=0 if config.features_dir else config.num_workers,
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        seed=config.seed,
        disable_tqdm=False,
    )
    _use_one_device(arguments, device)
    return arguments


def _use_one_device(arguments: Seq2SeqTrainingArguments, device: torch.device) -> None:
    """Keep one process on one device; transformers would take the first, and all others by DataParallel."""
    if device.type == "cpu" or arguments.parallel_mode == ParallelMode.DISTRIBUTED:
        return
    arguments._n_gpu = 1  # no flag says so
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # accelerate's device is "cuda", whichever is current
        arguments._setup_devices = device  # `arguments.device` is "cuda:0" otherwise


def _features_folder(config: TrainConfig) -> str:
    """The feature cache to train from: the one that is given, else one that is found; empty for none. Says so."""
    found = str(Path(config.data_dir) / "features")
    if config.features_dir is not None:
        folder = config.features_dir
    else:
        folder = found if not config.augment and FeatureCache.exists(found) else ""
    print(f"features: from the cache {folder}" if folder else "features: computed at every step, from no cache")
    return folder


def _dataset(
    config: TrainConfig, utterances: Sequence[Utterance], loaded: LoadedModel, *, training: bool = False
) -> UtteranceDataset:
    """Examples from the feature cache if there is one, else from the audio; only those for training are varied."""
    if not config.features_dir:
        return SpeechDataset(utterances, loaded.processor, training and config.augment, config.seed)
    source = feature_source(
        loaded.model.config.speech_encoder_fingerprint,
        loaded.model.config.encoder_config,
        loaded.processor.feature_extractor,
    )
    try:
        cache = FeatureCache.open(config.features_dir, expected_source=source)
        readable = [utterance for utterance in utterances if utterance.id not in cache.unreadable]
        cache.require_fresh(readable)
    except DataError as error:
        raise DataError(f'{error}; or give --features_dir "" to compute features at every step') from None
    if len(readable) < len(utterances):
        print(f"left out: {len(utterances) - len(readable)} of {len(utterances)} utterances that cannot be read")
    if not training:
        return CachedSpeechDataset(readable, loaded.processor, cache)
    return CachedSpeechDataset(
        readable,
        loaded.processor,
        cache,
        config.seed,
        use_copies=True,
        frame_dropping=config.frame_dropping,
        embedding_noise=config.embedding_noise,
    )


def _batches(config: TrainConfig, utterances: Sequence[Utterance]) -> LengthBatches | None:
    """Batches of so many seconds, if they are asked for; says what they hold."""
    if config.batch_seconds is None:
        return None
    batches = LengthBatches([utterance.duration for utterance in utterances], config.batch_seconds, config.seed)
    share = 100 * batches.padding_share()
    print(f"batches: {len(batches):,} an epoch of at most {config.batch_seconds:g} s, {share:.1f} % of it padding")
    return batches


def _shortest_first(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Neighbours of like length, so that evaluation pads little."""
    return sorted(utterances, key=lambda utterance: utterance.duration)


def _metrics(processor: ASRDogeProcessor) -> Callable[[EvalPrediction], dict[str, float]]:
    """WER, CER and exact match of generated texts, as fractions."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        references, hypotheses = (
            processor.batch_decode(torch.as_tensor(ids)) for ids in (prediction.label_ids, prediction.predictions)
        )
        scores = score(references, hypotheses)
        return {"wer": scores.wer, "cer": scores.cer, "exact_match": scores.perfect_match_rate}

    return compute


def _checkpoint_to_resume(resume_from: str | None, output_dir: Path) -> str | None:
    if resume_from is None:
        if output_dir.is_dir() and get_last_checkpoint(str(output_dir)) is not None:
            raise ConfigError(
                f"{output_dir} holds the checkpoints of another run: go on with it by --resume_from latest, or choose"
                " another --output_dir"
            )
        return None
    if resume_from == "latest":
        found = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if found is None:
            raise ConfigError(f"--resume_from latest: there is no checkpoint-N folder in {output_dir}")
        return found
    if not (Path(resume_from) / "trainer_state.json").is_file():
        raise ConfigError(f"--resume_from {resume_from}: not a checkpoint-N folder of a training run")
    return resume_from


def _require_same_model(checkpoint: str, config: PreTrainedConfig) -> None:
    """Refuse to put a checkpoint's weights and optimizer into another model than they were of.

    Raises:
        ConfigError: the flags give another model; the message names them.
        CheckpointError: the checkpoint has no usable config.json.
    """
    before = load_asr_doge_config(find_model(Path(checkpoint)))
    flags = [name for name in _MODEL_FLAGS if getattr(before, name) != getattr(config, name)]
    parts = (
        ("speech_encoder", "encoder_config", "speech_encoder_fingerprint"),
        ("language_model", "text_config", "language_model_fingerprint"),  # no fingerprint in checkpoints of `full`
    )
    for flag, sub_config, fingerprint in parts:
        old, new = (settings(getattr(side, sub_config).to_dict()) for side in (before, config))
        if old != new or getattr(before, fingerprint) not in (None, getattr(config, fingerprint)):
            flags.append(flag)
    if flags:
        named = ", ".join(f"--{name}" for name in sorted(flags))
        raise ConfigError(
            f"--resume_from {checkpoint}: that run had another {named}; give what it had, or start a new run in another"
            " --output_dir"
        )


_MODEL_FLAGS = (
    *("prompt", "adapter_type", "adapter_hidden_dim", "adapter_stack", "adapter_output_norm"),
    "train_language_model",
)
"""Settings of the model that are fields of `ASRDogeConfig` of the same name."""


class LimitedPatience(EarlyStoppingCallback):
    """Early stopping that goes on counting over a resume, where transformers' own starts anew."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **report: Any,
    ) -> None:
        """Count the evaluations since the best one of the run that is resumed."""
        super().on_train_begin(args, state, control, **report)
        cers = [entry["eval_cer"] for entry in state.log_history if "eval_cer" in entry]
        self.early_stopping_patience_counter = len(cers) - 1 - cers.index(min(cers)) if cers else 0


class KeepBest(TrainerCallback):
    """Write `best` whenever an evaluation has the lowest dev CER so far."""

    def __init__(self, loaded: LoadedModel, generation_config: GenerationConfig, folder: Path) -> None:
        self.loaded = loaded
        self.generation_config = generation_config  # the Trainer fills up the model's own with its defaults
        self.folder = folder

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **report: Any,
    ) -> None:
        """Compare with `state.best_metric`, which the Trainer updates after this call and keeps over a resume."""
        if state.best_metric is None or report["metrics"]["eval_cer"] < state.best_metric:
            self.loaded.model.generation_config = copy.deepcopy(self.generation_config)
            self.loaded.save(self.folder)
