"""The `train` command: fit the adapter (and, if wanted, the language model) on processed speech.

Promises: transformers' Trainer, with the recipe of `configs/default.yaml` as defaults (that of the published code is
`configs/published.yaml`); only what is trained is in the optimizer and the checkpoints; an interrupted run resumes; the
best model by dev CER is left in `OUTPUT/best`, the last in `OUTPUT/final`.
It does not compute features ahead (see `asr_doge.inference.features`) but uses a cache that it is given or finds.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import GenerationConfig, ProgressCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from asr_doge.data.atomic_writing import check_writable, write_atomically
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, manifest_path, read_manifest, sample_utterances
from asr_doge.errors import ConfigError, TrainingError
from asr_doge.models import LoadedModel, assemble_model
from asr_doge.models.device_memory import is_out_of_memory
from asr_doge.text.prompt import PLACE
from asr_doge.training.arguments import training_arguments, use_precision
from asr_doge.training.callbacks import (
    EarlyStopping,
    KeepBest,
    MarkComplete,
    Progress,
    ShowEvaluation,
    cers_between,
    train_until_stopped,
)
from asr_doge.training.card import write_card
from asr_doge.training.checking import check_flags, require_positions
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.evaluation import Evaluation
from asr_doge.training.examples import NamedExamples, collate_named
from asr_doge.training.heads import Ids, prepare_head, tokens_of
from asr_doge.training.hub_upload import push_to_hub
from asr_doge.training.inputs import (
    evaluation_batches,
    leave_out_unreadable,
    open_dataset,
    shortest_first,
    training_batches,
    utterances_at_once,
)
from asr_doge.training.plan import MemoryPlan, longest_batch, plan_memory
from asr_doge.training.precision import chosen_bf16
from asr_doge.training.processes import own_device, print_once, process_count, uses_fsdp
from asr_doge.training.record import describe_data, describe_machine, read_record, write_record
from asr_doge.training.resuming import (
    Lineage,
    changes_since,
    checkpoint_to_resume,
    left_behind,
    remove_old,
    require_same_model,
    require_same_sharding,
)
from asr_doge.training.schedule import Schedule, read_schedule
from asr_doge.training.tracking import uses_wandb, wandb_run
from asr_doge.training.trainer import SpeechTrainer, not_written, writing
from asr_doge.training.warm_up import forget_warm_up, resolve_warm_up, warm_up

CONFIG_NAME = "train_config.yaml"
"""File in `output_dir` with the settings of the run, for `--config`."""
KEPT_CHECKPOINTS = 2
"""Newest `checkpoint-N` folders that stay."""


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run; `dev_cer` is that of `best`, as a fraction."""

    best_dir: Path
    final_dir: Path
    steps: int
    dev_cer: float


@dataclass
class _Run:
    """Everything that a run needs, checked and loaded."""

    trainer: SpeechTrainer
    show: ShowEvaluation
    loaded: LoadedModel
    checkpoint: Path | None
    """The checkpoint to resume from, if any."""
    lineage: Lineage
    """The checkpoints in the history of the run."""
    begin: int
    """Step that evaluations count from: above 0 where the run went back, or goes on with other settings."""
    record: dict[str, Any]
    """The content of `run.json`."""
    generation_config: GenerationConfig
    """The generation configuration to save; the Trainer adds its defaults to the model's own."""


def train(config: TrainConfig) -> TrainResult:
    """Run the `train` command.

    Raises:
        ASRDogeError: data, model parts or flags that cannot be used, or a run that cannot go on.
        KeyboardInterrupt: after Ctrl-C, with the run saved.
    """
    config = _resolved(config)
    run = _prepare(config)
    trainer, loaded, output_dir = run.trainer, run.loaded, Path(config.output_dir)
    if run.checkpoint is None and config.resume_from is None:
        forget_warm_up(output_dir)
    if trainer.is_world_process_zero():
        _print_features(config)
        _print_plan(_plan(run, config), config)
        remove_old(output_dir, run.lineage, KEPT_CHECKPOINTS, spare_left_behind=True)
        write_atomically(output_dir / CONFIG_NAME, yaml.safe_dump(asdict(config), sort_keys=False).encode())
        write_record(output_dir, run.record)
    is_logged = uses_wandb(config) and trainer.is_world_process_zero()
    if config.warm_up == "ctc" and run.checkpoint is None:
        train_examples, dev_examples = (
            cast(NamedExamples, dataset).examples for dataset in (trainer.train_dataset, trainer.eval_dataset)
        )
        warm_up(config, loaded, train_examples, dev_examples, trainer.args.bf16)
    with wandb_run(config) if is_logged else nullcontext():
        _run_to_the_end(run, config)
    cers = cers_between(trainer.state, run.begin) or cers_between(trainer.state, 0)
    result = TrainResult(output_dir / "best", output_dir / "final", trainer.state.global_step, min(cers))
    weights = trainer.trained_weights()
    if trainer.is_world_process_zero():
        loaded.model.generation_config = run.generation_config
        with writing(result.final_dir):
            loaded.save(result.final_dir, weights)
        reached = {"steps": result.steps, "dev_cer": result.dev_cer, "unreadable": len(trainer.unreadable)}
        record = {**run.record, "result": reached}
        write_record(output_dir, record)
        for folder in (result.best_dir, result.final_dir):
            write_card(folder, record)
    if process_count() > 1:  # else a process may abort when it ends, with its threads still at work
        trainer.accelerator.state.destroy_process_group()
    if config.push_to_hub and trainer.is_world_process_zero():
        model_id = config.hub_model_id or output_dir.resolve().name
        print(f"pushed: {push_to_hub(result.best_dir, model_id, private=config.hub_private_repo)}")
    return result


def plan(config: TrainConfig) -> MemoryPlan:
    """Plan the memory that `train` needs, without training.

    Raises:
        ASRDogeError: as `train`.
    """
    config = _resolved(config)
    return _plan(_prepare(config), config)


def _prepare(config: TrainConfig) -> _Run:
    """Check and load everything."""
    check_flags(config)
    schedule = read_schedule(config)
    output_dir, checkpoint, begin = Path(config.output_dir), None, 0
    if not config.plan:
        check_writable(output_dir)
        checkpoint = checkpoint_to_resume(config.resume_from, output_dir)
    set_seed(config.seed)
    train_set = read_manifest(manifest_path("train", config.data_dir, config.train_manifest))
    dev_set = read_manifest(manifest_path("dev", config.data_dir, config.dev_manifest))
    data = describe_data({"train": train_set, "dev": dev_set})
    if PLACE in config.prompt_template and not any(utterance.language for utterance in train_set):
        raise ConfigError(
            "--prompt_template names the language, which no utterance to train on does: give 'asr-doge process' its"
            " --language"
        )
    loaded = _assemble(config)
    if config.vocabulary == "texts":
        loaded.model.restrict_vocabulary(tokens_of(loaded.processor, [*train_set, *dev_set]))
    if checkpoint is not None:
        require_same_sharding(checkpoint, uses_fsdp(config))
        require_same_model(checkpoint, loaded.model.config)
        begin = _begin(config, checkpoint, data)
    elif config.resume_from is not None:  # it may be in its warm-up
        _changes(config, output_dir / "checkpoint-0", data)
    ctc_ids = prepare_head(config, loaded, train_set)
    loaded.model.config.max_audio_seconds = max(utterance.duration for utterance in train_set)
    generation_config = copy.deepcopy(loaded.model.generation_config)
    dev_sample = sample_utterances(dev_set, config.eval_samples, config.sample_choice)
    require_positions(loaded, [*train_set, *dev_sample])
    before = read_record(checkpoint) if checkpoint else None
    trainer, show = _trainer(config, schedule, loaded, train_set, dev_sample, ctc_ids, before, begin)
    lineage = Lineage.going_on(checkpoint)
    record = {
        **asdict(lineage),
        "config": asdict(config),
        "data": data,
        "parameters": asdict(loaded.model.count_parameters()),
        "machine": describe_machine(trainer.args.device, trainer.args.world_size),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "resumed_from": checkpoint.name if checkpoint else None,
        "judged_from": begin,
    }
    trainer.add_callback(MarkComplete(KEPT_CHECKPOINTS, lineage, record))
    return _Run(trainer, show, loaded, checkpoint, lineage, begin, record, generation_config)


def _begin(config: TrainConfig, checkpoint: Path, data: dict[str, Any]) -> int:
    """The step that evaluations count from, of a run that is resumed.

    Raises:
        ConfigError: with other settings or data, and that was not allowed.
    """
    before = read_record(checkpoint) or {}
    if "run_id" not in before:
        print_once(f"{checkpoint}: of an older version, without a run id; taken for one of this run")
    changed = _changes(config, checkpoint, data)
    is_other = bool(changed or left_behind(checkpoint, Path(config.output_dir)))
    step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    return step if is_other else int(before.get("judged_from", 0))


def _changes(config: TrainConfig, checkpoint: Path, data: dict[str, Any]) -> list[str]:
    """The differences from the settings and data of a checkpoint; an error unless they are allowed."""
    changed = changes_since(checkpoint, asdict(config), data, process_count())
    if changed and not config.allow_config_change:
        raise ConfigError(
            f"--resume_from {checkpoint}: that run had {'; '.join(changed)}. Give what it had, or --allow_config_change"
            " to go on all the same"
        )
    return changed


def _resolved(config: TrainConfig) -> TrainConfig:
    """The configuration with defaults that depend on the data resolved.

    These are the feature cache to train from (the one that is given, else one that is found; empty for none), and
    whether the run begins with a warm-up stage.
    """
    found = str(Path(config.data_dir) / "features")
    if config.train_encoder != "none":
        folder = ""
    elif config.features_dir is not None:
        folder = config.features_dir
    else:
        folder = found if not config.augment and FeatureCache.exists(found) else ""
    config = replace(config, features_dir=folder)
    return replace(config, warm_up="ctc" if resolve_warm_up(config) else "none")


def _print_features(config: TrainConfig) -> None:
    if config.features_dir:
        print(f"features: from the cache {config.features_dir}")
    elif config.train_encoder != "none":
        print(f"features: computed at every step, as --train_encoder {config.train_encoder} changes them")
    else:
        print("features: computed at every step, from no cache")


def _assemble(config: TrainConfig) -> LoadedModel:
    """The untrained model that the flags describe; with cached features, without the weights of its encoder."""
    return assemble_model(
        config.speech_encoder,
        config.language_model,
        prompt_template=config.prompt_template,
        encoder_window=config.encoder_window,
        device=own_device(config),
        skip_encoder_weights=bool(config.features_dir),
        adapter_type=config.adapter_type,
        adapter_hidden_dim=config.adapter_hidden_dim,
        adapter_stack=config.adapter_stack,
        adapter_output_norm=config.adapter_output_norm,
        train_language_model=config.train_language_model,
        train_encoder=config.train_encoder,
        train_encoder_layers=config.train_encoder_layers,
        lora=_lora_options(config) if "lora" in (config.train_language_model, config.train_encoder) else None,
    )


def _lora_options(config: TrainConfig) -> dict[str, Any]:
    """The options of `peft.LoraConfig`."""
    return {
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": "all-linear" if config.lora_targets == ["all-linear"] else config.lora_targets,
    }


def _trainer(
    config: TrainConfig,
    schedule: Schedule,
    loaded: LoadedModel,
    train_set: Sequence[Utterance],
    dev_set: Sequence[Utterance],
    ctc_ids: Ids | None,
    before: dict[str, Any] | None,
    begin: int,
) -> tuple[SpeechTrainer, ShowEvaluation]:
    """The Trainer with its data and callbacks, and what shows its progress in the run's folder."""
    output_dir = Path(config.output_dir)
    train_examples = open_dataset(config, train_set, loaded, training=True)
    train_examples.ctc_ids = ctc_ids
    named = NamedExamples(train_examples)
    arguments = training_arguments(config, schedule, output_dir)
    use_precision(arguments, chosen_bf16(config, loaded.model, named, utterances_at_once(config), before))
    dev_examples, unreadable = leave_out_unreadable(open_dataset(config, shortest_first(dev_set), loaded))
    evaluation = Evaluation(loaded.processor, dev_examples.utterances)
    trainer = SpeechTrainer(
        loaded.model,
        arguments,
        data_collator=collate_named,
        train_dataset=named,
        eval_dataset=NamedExamples(dev_examples),
        processing_class=loaded.processor,
        compute_metrics=evaluation,
        callbacks=[EarlyStopping(config.patience, begin, schedule.epochs_before_last)],
        schedule=schedule,
        batches=training_batches(config, train_examples.utterances),
        evaluation_batches=evaluation_batches(config, dev_examples.utterances),
        decays_all=config.weight_decay_scope == "all",
        utterances=train_examples.utterances,
        unreadable=unreadable,
        max_unreadable=config.max_unreadable,
    )
    show = ShowEvaluation(evaluation, output_dir, begin)
    saved = copy.deepcopy(loaded.model.generation_config)
    trainer.add_callback(KeepBest(trainer, loaded, saved, output_dir / "best", begin))
    trainer.add_callback(show)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress(trainer))
    return trainer, show


def _plan(run: _Run, config: TrainConfig) -> MemoryPlan:
    examples = cast(NamedExamples, run.trainer.train_dataset)
    at_once = utterances_at_once(config)
    if config.batch_seconds is not None:
        at_once = max(1, int(config.batch_seconds / max(utterance.duration for utterance in examples.utterances)))
    with _within_memory(config, run.loaded.model.device):
        return plan_memory(
            run.loaded.model,
            longest_batch(examples, config.max_unreadable),
            at_once,
            bf16=run.trainer.args.bf16,
            shards=process_count() if uses_fsdp(config) else 1,
        )


def _print_plan(planned: MemoryPlan, config: TrainConfig) -> None:
    """Print it, and a warning if the device has not that much memory."""
    print("\n".join(planned.lines()))
    if planned.fits:
        return
    if config.batch_seconds is not None:
        advice = f"--batch_seconds {config.batch_seconds:g} may not fit: lower it"
    else:
        largest = planned.largest_batch * (config.batch_size // utterances_at_once(config))
        advice = f"--batch_size {config.batch_size} may not fit, {largest} does; or raise --gradient_accumulation_steps"
    print(f"warning: {advice}", file=sys.stderr)


@contextmanager
def _within_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Name the flag to lower when memory runs out, in a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = f"--batch_size {config.batch_size}: raise --gradient_accumulation_steps, which cuts it, or lower it"
        if config.batch_seconds is not None:
            advice = f"--batch_seconds {config.batch_seconds:g}: lower it"
        raise TrainingError(f"a step does not fit into the memory of {device} with {advice}") from error


def _run_to_the_end(run: _Run, config: TrainConfig) -> None:
    """Train to the end, which is evaluated too."""
    trainer = run.trainer
    try:
        with _within_memory(config, trainer.args.device):
            is_stopped = train_until_stopped(trainer, run.checkpoint)
    except OSError as error:  # of a logger, whose file is in the run's folder
        raise not_written(Path(config.output_dir), error) from error
    if trainer.state.global_step % config.eval_steps and not is_stopped:
        trainer.evaluate()
    run.show.draw(trainer.state)
    if is_stopped:
        raise KeyboardInterrupt
