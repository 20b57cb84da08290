"""The `train` verb: fit the adapter (and, if wanted, the language model) on processed speech.

Promises: transformers' Trainer with the published recipe as defaults; only what is trained is in the optimizer and the
checkpoints; an interrupted run resumes; the best model by dev CER is left in `OUTPUT/best`, the last in `OUTPUT/final`.
It does not compute features ahead (see `asr_doge.inference.features`) but uses a cache that it is given or finds.
"""

import copy
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, cast

import torch
import yaml
from transformers import GenerationConfig, ProgressCallback, Seq2SeqTrainingArguments, set_seed
from transformers.training_args import ParallelMode

from asr_doge.data.atomic_writing import check_writable, write_atomically
from asr_doge.data.batching import LengthBatches, SharedBatches
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.manifest import Utterance, read_manifest, sample_utterances
from asr_doge.data.sharding import Shard
from asr_doge.errors import AudioError, ConfigError, DataError, TrainingError
from asr_doge.models import LoadedModel, assemble_model, find_device
from asr_doge.models.checkpoints import first_line
from asr_doge.models.encoders.loading import feature_source
from asr_doge.text.prompt import PLACE
from asr_doge.training.callbacks import KeepBest, LimitedPatience, MarkComplete, Progress, Show, StopWhenAsked
from asr_doge.training.card import write_card
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.datasets import CachedSpeechDataset, SpeechDataset, UtteranceDataset
from asr_doge.training.evaluation import Evaluation
from asr_doge.training.examples import NamedExamples, collate_named
from asr_doge.training.plan import MemoryPlan, longest_batch, plan_memory
from asr_doge.training.record import describe_data, describe_machine, write_record
from asr_doge.training.resuming import (
    checkpoint_to_resume,
    remove_old,
    require_same_model,
    require_same_run,
    require_same_sharding,
)
from asr_doge.training.schedule import Schedule, read_schedule
from asr_doge.training.sharing import push_to_hub
from asr_doge.training.trainer import SpeechTrainer, not_written, writing

CONFIG_NAME = "train_config.yaml"
"""In `output_dir`, the settings of the run, to be given to `--config`."""
KEPT_CHECKPOINTS = 2
"""Newest `checkpoint-N` folders that stay."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind; `dev_cer` is that of `best`, as a fraction."""

    best_dir: Path
    final_dir: Path
    steps: int
    dev_cer: float


@dataclass
class _Run:
    """Everything that a run needs, checked and loaded."""

    trainer: SpeechTrainer
    show: Show
    loaded: LoadedModel
    checkpoint: Path | None
    """To go on from."""
    record: dict[str, Any]
    """What `run.json` says of it."""
    generation_config: GenerationConfig
    """As it is to be saved; the Trainer fills up the model's own with its defaults."""


def train(config: TrainConfig) -> TrainResult:
    """Run the `train` verb.

    Raises:
        ASRDogeError: data, model parts or flags that cannot be used, or a run that cannot go on.
        KeyboardInterrupt: after Ctrl-C, with the run saved.
    """
    config = _with_features(config)
    run = _prepare(config)
    trainer, loaded, output_dir = run.trainer, run.loaded, Path(config.output_dir)
    if trainer.is_world_process_zero():
        _say_features(config)
        _say_plan(_plan(run, config), config)
        remove_old(output_dir, KEPT_CHECKPOINTS)
        write_atomically(output_dir / CONFIG_NAME, yaml.safe_dump(asdict(config), sort_keys=False).encode())
        write_record(output_dir, run.record)
    is_logged = _uses_wandb(config) and trainer.is_world_process_zero()
    with _wandb_run(config) if is_logged else nullcontext():
        _run_to_the_end(run, config)
    cers = [entry["eval_cer"] for entry in trainer.state.log_history if "eval_cer" in entry]
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
    if _processes() > 1:  # else a process may abort when it ends, with its threads still at work
        trainer.accelerator.state.destroy_process_group()
    if config.push_to_hub and trainer.is_world_process_zero():
        model_id = config.hub_model_id or output_dir.resolve().name
        print(f"pushed: {push_to_hub(result.best_dir, model_id, private=config.hub_private_repo)}")
    return result


def plan(config: TrainConfig) -> MemoryPlan:
    """What `train` would need, without training.

    Raises:
        ASRDogeError: as `train`.
    """
    config = _with_features(config)
    return _plan(_prepare(config), config)


def _prepare(config: TrainConfig) -> _Run:
    """Check and load everything."""
    _check_flags(config)
    schedule = read_schedule(config)
    output_dir = Path(config.output_dir)
    checkpoint = None
    if not config.plan:
        check_writable(output_dir)
        checkpoint = checkpoint_to_resume(config.resume_from, output_dir)
    set_seed(config.seed)
    train_set = read_manifest(Path(config.train_manifest or Path(config.data_dir) / "train_manifest.json"))
    dev_set = read_manifest(Path(config.dev_manifest or Path(config.data_dir) / "dev_manifest.json"))
    data = describe_data({"train": train_set, "dev": dev_set})
    if PLACE in config.prompt_template and not any(utterance.language for utterance in train_set):
        raise ConfigError(
            "--prompt_template names the language, which no utterance to train on does: give 'asr-doge process' its"
            " --language"
        )
    loaded = _assemble(config)
    if checkpoint is not None:
        require_same_sharding(checkpoint, _uses_fsdp(config))
        require_same_model(checkpoint, loaded.model.config)
        if not config.allow_config_change:
            require_same_run(checkpoint, asdict(config), data, _processes())
    loaded.model.config.max_audio_seconds = max(utterance.duration for utterance in train_set)
    generation_config = copy.deepcopy(loaded.model.generation_config)
    dev_sample = sample_utterances(dev_set, config.eval_samples)
    _require_positions(loaded, [*train_set, *dev_sample])
    trainer, show = _trainer(config, schedule, loaded, train_set, dev_sample)
    record = {
        "config": asdict(config),
        "data": data,
        "parameters": asdict(loaded.model.count_parameters()),
        "machine": describe_machine(trainer.args.device, trainer.args.world_size),
        "resumed_from": checkpoint.name if checkpoint else None,
    }
    return _Run(trainer, show, loaded, checkpoint, record, generation_config)


def _require_positions(loaded: LoadedModel, utterances: Sequence[Utterance]) -> None:
    """Refuse utterances that are longer, with prompt, speech and text, than what the language model has learnt to read.

    Raises:
        DataError: there are some; the message names the first.
    """
    config = loaded.model.config
    limit = getattr(config.text_config, "max_position_embeddings", None) or math.inf
    rate = loaded.model.encoder.frame_rate_hz / config.adapter_stack
    languages = {utterance.language for utterance in utterances}
    prompt = {language: len(loaded.processor.prompt_ids(language)) for language in languages}
    too_long = []
    for utterance in utterances:
        before = prompt[utterance.language] + math.ceil(utterance.duration * rate)
        if before + len(utterance.text.encode()) < limit:  # a token is a byte at least, and counting them takes longer
            continue
        needed = before + len(loaded.processor.label_ids(utterance.text))
        if needed > limit:
            too_long.append(f"{utterance.id!r}, {needed:,}")
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(utterances):,} utterances do not fit into the {limit:,} positions of the language"
            f" model (the first: {too_long[0]}): leave them out of the manifest, or cut them"
        )


_POSITIVE = (
    *("adapter_hidden_dim", "adapter_stack", "batch_size", "epochs", "eval_samples", "eval_steps", "patience"),
    *("gradient_accumulation_steps", "lora_rank", "save_steps", "train_encoder_layers"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "language_model_learning_rate", "encoder_learning_rate", "warmup_steps", "weight_decay"),
    *("embedding_noise", "lora_alpha", "lora_dropout", "max_grad_norm", "max_unreadable", "num_workers"),
)


def _check_flags(config: TrainConfig) -> None:
    """Refuse, before anything is loaded, numbers that training could not use."""
    for name in _POSITIVE:
        if getattr(config, name) <= 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must be more than 0")
    for name in _NOT_NEGATIVE:
        if (getattr(config, name) or 0) < 0:
            raise ConfigError(f"--{name} {getattr(config, name)} cannot be used: it must not be negative")
    if config.save_steps % config.eval_steps:
        raise ConfigError(f"save_steps ({config.save_steps}) must be a multiple of eval_steps ({config.eval_steps})")
    if config.batch_seconds is not None and config.batch_seconds <= 0:
        raise ConfigError(f"--batch_seconds {config.batch_seconds} cannot be used: it must be more than 0")
    _check_variations(config)
    shares = _processes() * config.gradient_accumulation_steps
    if config.batch_seconds is None and config.batch_size % shares:
        raise ConfigError(
            f"--batch_size {config.batch_size} cannot be cut into {shares} equal parts ({_processes()} processes ×"
            f" --gradient_accumulation_steps {config.gradient_accumulation_steps}): give a multiple of {shares}"
        )
    if _uses_fsdp(config) and _processes() == 1:
        raise ConfigError("--fsdp shares weights out over several processes: start them by torchrun, or leave it out")
    if _uses_wandb(config) and find_spec("wandb") is None:
        raise ConfigError("--wandb_project needs the package wandb: pip install 'asr-doge[wandb]', or give --no_wandb")


def _uses_wandb(config: TrainConfig) -> bool:
    return config.wandb_project is not None and not config.no_wandb


@contextmanager
def _wandb_run(config: TrainConfig) -> Iterator[None]:
    """A run of Weights & Biases, which transformers' callback then logs to.

    Raises:
        ConfigError: nobody is logged in, or the project cannot be reached.
    """
    import wandb

    try:
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=config.wandb_run_name,
            config={"asr_doge": asdict(config)},
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"--wandb_project {config.wandb_project}: {first_line(error)}; log in by 'wandb login', set"
            " WANDB_MODE=offline, or give --no_wandb"
        ) from error
    with run:
        yield


def _with_features(config: TrainConfig) -> TrainConfig:
    """The same, with the feature cache to train from: the one that is given, else one that is found; empty for none."""
    found = str(Path(config.data_dir) / "features")
    if config.train_encoder != "none":
        folder = ""
    elif config.features_dir is not None:
        folder = config.features_dir
    else:
        folder = found if not config.augment and FeatureCache.exists(found) else ""
    return replace(config, features_dir=folder)


def _say_features(config: TrainConfig) -> None:
    if config.features_dir:
        print(f"features: from the cache {config.features_dir}")
    elif config.train_encoder != "none":
        print(f"features: computed at every step, as --train_encoder {config.train_encoder} changes them")
    else:
        print("features: computed at every step, from no cache")


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
        if getattr(config, name) and config.train_encoder != "none":
            raise ConfigError(
                f"--{name} varies cached features, and --train_encoder {config.train_encoder} uses none: leave one of"
                " them out"
            )
        if getattr(config, name) and not config.features_dir:
            raise ConfigError(f"--{name} varies cached features: run 'asr-doge features' first")


def _processes() -> int:
    """Processes of this run, as torchrun and `accelerate launch` tell each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def _say(line: str, file: TextIO | None = None) -> None:
    """Print a line that all processes have to say, once."""
    if _rank() == 0:
        print(line, file=file)


def _uses_fsdp(config: TrainConfig) -> bool:
    return config.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"  # as `accelerate launch --use_fsdp` says it


def _device(config: TrainConfig) -> torch.device:
    """The device of this process: the one asked for, or its own among several of the kind."""
    device = find_device(config.device)
    if _processes() == 1 or device.type == "cpu":
        return device
    return find_device(f"{device.type}:{os.environ.get('LOCAL_RANK', '0')}")


def _assemble(config: TrainConfig) -> LoadedModel:
    """The untrained model that the flags describe."""
    return assemble_model(
        config.speech_encoder,
        config.language_model,
        prompt_template=config.prompt_template,
        device=_device(config),
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
    """As `peft.LoraConfig` has them."""
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
) -> tuple[SpeechTrainer, Show]:
    """The Trainer with its data and callbacks, and what shows its progress in the run's folder."""
    output_dir = Path(config.output_dir)
    train_examples = _dataset(config, train_set, loaded, training=True)
    dev_examples, unreadable = _readable(_dataset(config, _shortest_first(dev_set), loaded))
    evaluation = Evaluation(loaded.processor, dev_examples.utterances)
    trainer = SpeechTrainer(
        loaded.model,
        _training_arguments(config, schedule, output_dir),
        data_collator=collate_named,
        train_dataset=NamedExamples(train_examples),
        eval_dataset=NamedExamples(dev_examples),
        processing_class=loaded.processor,
        compute_metrics=evaluation,
        callbacks=[
            LimitedPatience(config.patience, schedule.epochs_before_last),
            MarkComplete(KEPT_CHECKPOINTS),
        ],
        schedule=schedule,
        batches=_batches(config, train_examples.utterances),
        evaluation_batches=_evaluation_batches(config, dev_examples.utterances),
        utterances=train_examples.utterances,
        unreadable=unreadable,
        max_unreadable=config.max_unreadable,
    )
    show = Show(evaluation, output_dir)
    trainer.add_callback(KeepBest(trainer, loaded, copy.deepcopy(loaded.model.generation_config), output_dir / "best"))
    trainer.add_callback(show)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress(trainer))
    return trainer, show


def _plan(run: _Run, config: TrainConfig) -> MemoryPlan:
    examples = cast(NamedExamples, run.trainer.train_dataset)
    at_once = _utterances_at_once(config)
    if config.batch_seconds is not None:
        at_once = max(1, int(config.batch_seconds / max(utterance.duration for utterance in examples.utterances)))
    with _within_memory(config, run.loaded.model.device):
        return plan_memory(
            run.loaded.model,
            longest_batch(examples, config.max_unreadable),
            at_once,
            bf16=run.trainer.args.bf16,
            shards=_processes() if _uses_fsdp(config) else 1,
        )


def _say_plan(planned: MemoryPlan, config: TrainConfig) -> None:
    """Print it, and a warning if the device has not that much memory."""
    print("\n".join(planned.lines()))
    if planned.fits:
        return
    if config.batch_seconds is not None:
        advice = f"--batch_seconds {config.batch_seconds:g} may not fit: lower it"
    else:
        largest = planned.largest_batch * (config.batch_size // _utterances_at_once(config))
        advice = f"--batch_size {config.batch_size} may not fit, {largest} does; or raise --gradient_accumulation_steps"
    print(f"warning: {advice}", file=sys.stderr)


@contextmanager
def _within_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Name the flag to lower when memory runs out.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # a CPU's
            raise
        advice = f"--batch_size {config.batch_size}: raise --gradient_accumulation_steps, which cuts it, or lower it"
        if config.batch_seconds is not None:
            advice = f"--batch_seconds {config.batch_seconds:g}: lower it"
        raise TrainingError(f"a step does not fit into the memory of {device} with {advice}") from error


def _run_to_the_end(run: _Run, config: TrainConfig) -> None:
    """Train to the end, which is evaluated too."""
    trainer, stop = run.trainer, StopWhenAsked()
    trainer.add_callback(stop)
    try:
        with _within_memory(config, trainer.args.device):
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    except OSError as error:  # of a logger, whose file is in the run's folder
        raise not_written(Path(config.output_dir), error) from error
    finally:
        stop.restore()
    if trainer.state.global_step % config.eval_steps and not stop.asked:
        trainer.evaluate()
    run.show.draw(trainer.state)
    if stop.asked:
        raise KeyboardInterrupt


def _utterances_at_once(config: TrainConfig) -> int:
    """Of a process."""
    return max(1, config.batch_size // (_processes() * config.gradient_accumulation_steps))


def _training_arguments(config: TrainConfig, schedule: Schedule, output_dir: Path) -> Seq2SeqTrainingArguments:
    device = _device(config)
    loggers = {"wandb": _uses_wandb(config), "tensorboard": find_spec("tensorboard") is not None}
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=_utterances_at_once(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_steps=config.save_steps,
        metric_for_best_model="cer",
        greater_is_better=False,
        predict_with_generate=True,
        logging_steps=_logging_steps(config.eval_steps),
        logging_nan_inf_filter=False,  # SpeechTrainer stops instead
        dataloader_pin_memory=device.type == "cuda",
        report_to=[name for name, is_used in loggers.items() if is_used],
        dataloader_num_workers=0 if config.features_dir and config.train_encoder == "none" else config.num_workers,
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        fsdp=_uses_fsdp(config),  # type: ignore[arg-type]  # whose strings are on their way out
        ddp_backend="gloo" if device.type == "cpu" and _processes() > 1 else None,
        ddp_find_unused_parameters=False,
        seed=config.seed,
        disable_tqdm=False,
    )
    _use_one_device(arguments, device)
    return arguments


def _logging_steps(eval_steps: int) -> int:
    """At most 25, and a divisor: a mean loss that spans a checkpoint would be lost in part when the run resumes."""
    return max(steps for steps in range(1, min(25, eval_steps) + 1) if eval_steps % steps == 0)


def _use_one_device(arguments: Seq2SeqTrainingArguments, device: torch.device) -> None:
    """Keep one process on one device; transformers would take the first, and all others by DataParallel."""
    if device.type == "cpu" or arguments.parallel_mode == ParallelMode.DISTRIBUTED:
        return
    arguments._n_gpu = 1  # no flag says so
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # accelerate's device is "cuda", whichever is current
        arguments._setup_devices = device  # `arguments.device` is "cuda:0" otherwise


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
    if not readable:
        raise DataError(f"none of {len(utterances)} utterances could be read when {config.features_dir} was made")
    if len(readable) < len(utterances):
        _say(f"left out: {len(utterances) - len(readable)} of {len(utterances)} utterances that cannot be read")
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


def _readable(examples: UtteranceDataset) -> tuple[UtteranceDataset, dict[str, str]]:
    """What can be read, so that every evaluation is of the same utterances; and why the others cannot, by id.

    Raises:
        DataError: nothing remains.
    """
    if not isinstance(examples, SpeechDataset):
        return examples, {}
    unreadable = {}
    for index, utterance in enumerate(examples.utterances):
        try:
            examples[index]
        except AudioError as error:
            unreadable[utterance.id] = str(error)
            _say(f"left out: {error}", sys.stderr)
    readable = [utterance for utterance in examples.utterances if utterance.id not in unreadable]
    if not readable:
        raise DataError(f"none of the {len(examples)} dev utterances can be read; {next(iter(unreadable.values()))}")
    return SpeechDataset(readable, examples.processor), unreadable


def _batches(config: TrainConfig, utterances: Sequence[Utterance]) -> LengthBatches | None:
    """Batches of so many seconds, if they are asked for; says what they hold."""
    if config.batch_seconds is None:
        return None
    batches = LengthBatches([utterance.duration for utterance in utterances], config.batch_seconds, config.seed)
    share = 100 * batches.padding_share()
    _say(f"batches: {len(batches):,} an epoch of at most {config.batch_seconds:g} s, {share:.1f} % of it padding")
    return batches


def _evaluation_batches(config: TrainConfig, utterances: Sequence[Utterance]) -> SharedBatches:
    """The batches of this process's share of an evaluation, bounded as those of training are."""
    shard = Shard(_rank() + 1, _processes())
    if config.batch_seconds is None:
        return SharedBatches([1.0] * len(utterances), _utterances_at_once(config), shard)
    return SharedBatches([utterance.duration for utterance in utterances], config.batch_seconds, shard)


def _shortest_first(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Neighbours of like length, so that evaluation pads little."""
    return sorted(utterances, key=lambda utterance: utterance.duration)
