"""Convert the settings of a run to those of transformers' Trainer: of `train`, and of every `pretrain`.

Every value comes from a flag, or follows from the device and the processes. The precision is set afterwards, since it
may have to be measured on the device (see `asr_doge.training.precision`).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.training_args import ParallelMode

from asr_doge.training.configuration import TrainConfig
from asr_doge.training.inputs import utterances_at_once
from asr_doge.training.processes import own_device, process_count, uses_fsdp
from asr_doge.training.schedule import Schedule
from asr_doge.training.tracking import uses_wandb

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(config: TrainConfig, schedule: Schedule, output_dir: Path) -> Seq2SeqTrainingArguments:
    """The arguments of transformers' Trainer for `asr-doge train`."""
    device = own_device(config)
    loggers = {"wandb": uses_wandb(config), "tensorboard": find_spec("tensorboard") is not None}
    return arguments_on(
        device,
        Seq2SeqTrainingArguments,
        output_dir=str(output_dir),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=utterances_at_once(config),
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
        logging_steps=logging_steps(config.eval_steps),
        report_to=[name for name, is_used in loggers.items() if is_used],
        dataloader_num_workers=0 if config.features_dir and config.train_encoder == "none" else config.num_workers,
        label_names=["labels"],
        fsdp=uses_fsdp(config),
        ddp_backend="gloo" if device.type == "cpu" and process_count() > 1 else None,
        ddp_find_unused_parameters=False,
        seed=config.seed,
    )


def arguments_on(device: torch.device, kind: type[Arguments], **options: Any) -> Arguments:
    """Arguments of any run that evaluates as it goes; `device` is the only one of this process."""
    arguments = kind(
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a mean without them would hide them
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        disable_tqdm=False,
        **options,
    )
    use_one_device(arguments, device)
    return arguments


def pretraining_arguments(
    output_dir: Path, steps: int, batch_size: int, learning_rate: float, seed: int, **options: Any
) -> TrainingArguments:
    """Arguments of a run over generated batches, with the learning rate along a cosine; `options` override them."""
    settings: dict[str, Any] = {
        "warmup_steps": max(1, steps // 10),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_nan_inf_filter": False,  # it would hide them, and let the host wait for the device at each step
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "logging_steps": 25,
        "save_steps": max(1, steps // 10),
        "save_total_limit": 1,
        "report_to": "none",
    }
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        **settings | options,
    )


def train_or_resume(trainer: Trainer) -> None:
    """Train to the end, from the last checkpoint in the output folder if there is one."""
    folder = str(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if Path(folder).is_dir() else None)


def use_precision(arguments: TrainingArguments, bf16: bool) -> None:
    """Compute in bfloat16, or not, whatever `accelerate launch` sets; call before a Trainer is created."""
    arguments.bf16 = bf16
    arguments.mixed_precision = "bf16" if bf16 else "no"


def logging_steps(eval_steps: int) -> int:
    """At most 25, and a divisor: a mean loss over a range with a checkpoint in it would be partly lost on resuming."""
    return max(steps for steps in range(1, min(25, eval_steps) + 1) if eval_steps % steps == 0)


def use_one_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Keep one process on one device; transformers would use the first, and all others by DataParallel."""
    if device.type == "cpu" or arguments.parallel_mode == ParallelMode.DISTRIBUTED:
        return
    arguments._n_gpu = 1  # there is no flag for it
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # accelerate's device is "cuda", whichever is current
        arguments._setup_devices = device  # `arguments.device` is "cuda:0" otherwise
