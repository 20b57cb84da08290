"""The Trainer of transformers, told what is particular to speech.

Promises: each part of the model has a learning rate of its own, by the schedule; a loss or gradient that is not finite
stops the run with the ids of the batch, before the weights are touched; a recording that cannot be read is named once
and counted; a checkpoint that cannot be written is one line, and the ones before it stay whole.
The loop is transformers' own. It does not know the flags of the command.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import gather_object, save_fsdp_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from asr_doge.data.batching import ProcessBatches, SharedBatches
from asr_doge.data.manifest import Utterance
from asr_doge.errors import AudioError, ConfigError, TrainingError, first_line
from asr_doge.models import ASRDogeForConditionalGeneration
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.models.modeling_asr_doge import HEAD_PREFIX
from asr_doge.training.examples import IDS, UNREADABLE, ReadAheadLoader
from asr_doge.training.resuming import COMPLETE_NAME
from asr_doge.training.schedule import PARTS, Schedule

NAMED_IDS = 8
"""Ids that a message names at most."""


class SpeechTrainer(Seq2SeqTrainer):
    """Trains on batches of `collate_named`.

    Args:
        arguments: as in `Seq2SeqTrainer`.
        schedule: of the learning rates.
        batches: which utterances this process reads for a step.
        evaluation_batches: this process's part of an evaluation.
        decays_all: weight decay is of biases and norms too.
        utterances: those trained on, for their durations.
        unreadable: recordings left out already, each with the reason.
        max_unreadable: recordings that may be left out before the run stops.

    Raises:
        AudioError: there are too many already.
    """

    def __init__(
        self,
        *arguments: Any,
        schedule: Schedule,
        batches: ProcessBatches,
        evaluation_batches: SharedBatches,
        decays_all: bool,
        utterances: Sequence[Utterance],
        unreadable: Mapping[str, str],
        max_unreadable: int,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.trained_model = cast(ASRDogeForConditionalGeneration, self.model)
        """The model itself, where several processes may wrap it."""
        self.schedule, self.decays_all = schedule, decays_all
        self.batches, self.evaluation_batches = batches, evaluation_batches
        self.durations = {utterance.id: utterance.duration for utterance in utterances}
        self.max_unreadable, self.unreadable = max_unreadable, dict(unreadable)
        """Recordings that no process could read, each with the reason."""
        self._require_few_unreadable()
        self._unchecked: list[tuple[Tensor, list[str]]] = []
        """Losses of the step under way, each with the ids of its utterances."""
        self.audio_seconds = 0.0
        """Seconds of audio that this process has trained on since it started."""
        self._evaluated = torch.zeros(2)
        """This process's loss in the evaluation under way, summed over its labels, and their number."""
        self.add_callback(TellEpoch(self))

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does it, but with FSDP on CPUs too: torch has it there, accelerate knows it on GPUs only."""
        if self.args.fsdp and self.args.device.type == "cpu":
            PartialState().distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:  # by its own policy gradients would be summed in bfloat16
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """The context of a loss: with FSDP2, the autocast that accelerate otherwise applies by itself."""
        return self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext()

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights of a checkpoint, gathered from all shards of FSDP; all processes must call this together."""
        state = self.trained_model.state_dict()
        return {name: _whole(state[name]) for name in sorted(self.trained_model.trained_keys())}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save trained weights only: with FSDP, transformers would gather the frozen ones too."""
        weights = self.trained_weights()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the optimizer and the schedule: with FSDP, transformers would write the frozen weights too."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast(LRScheduler, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load what `save_model` wrote, into weights that may be sharded by FSDP already."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights: dict[str, Any] = load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.trained_model, weights, options=options)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's part of the batches: accelerate's loader would pad the last with utterances read before."""
        return self._loader(self.train_dataset, self.batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This process's part of the dev set: accelerate's loader would batch by count."""
        return self._loader(self.eval_dataset, self.evaluation_batches)

    def _loader(self, examples: Any, batches: ProcessBatches | SharedBatches) -> DataLoader[Any]:
        # Worker processes read ahead by themselves.
        loader: type[DataLoader[Any]] = DataLoader if self.args.dataloader_num_workers else ReadAheadLoader
        return loader(
            examples,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with two groups for each part: matrices, and others, whose decay may differ."""
        if self.optimizer is None:
            trained = {name: p for name, p in self.trained_model.named_parameters() if p.requires_grad}
            matrices = set(self.get_decay_parameter_names(self.trained_model))
            groups = []
            for part in PARTS:
                for is_matrix in (True, False):
                    chosen = [
                        p for name, p in trained.items() if part_of(name) == part and (name in matrices) == is_matrix
                    ]
                    if chosen:
                        weight_decay = self.args.weight_decay if is_matrix or self.decays_all else 0.0
                        # The rate is 1 for the schedule to multiply.
                        groups.append({"params": chosen, "weight_decay": weight_decay, "lr": 1.0, "part": part})
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The learning-rate schedule over `num_training_steps`."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            parts = [group["part"] for group in optimizer.param_groups]
            # Typed as a LambdaLR, though any scheduler will do.
            self.lr_scheduler = cast(LambdaLR, self._scheduler(optimizer, parts, num_training_steps))
        return self.lr_scheduler

    def _scheduler(self, optimizer: torch.optim.Optimizer, parts: Sequence[str], steps: int) -> LRScheduler:
        """The scheduler of the optimizer's groups, each of which belongs to one of `parts`."""
        if self.schedule.pct_start is not None:
            (stage,) = self.schedule.stages
            highest = [stage.learning_rates[part] for part in parts]
            if self.schedule.pct_start * steps <= 1:  # torch would divide by zero
                raise ConfigError(
                    f"--schedule onecycle cannot rise over a share of {self.schedule.pct_start:g} of {steps} steps:"
                    " train longer, or raise --pct_start"
                )
            return _OneCycle(optimizer, highest, total_steps=steps, pct_start=self.schedule.pct_start)
        rates: list[Callable[[int], float]] = [
            partial(self.schedule.learning_rate, part, total_steps=steps) for part in parts
        ]
        return _ByStep(optimizer, rates)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers does it, but for the settings, which are this run's and may be others than the checkpoint's.

        Stored with the optimizer are its rates, weight decay and momenta too, and with the scheduler its steps.
        """
        if checkpoint is None:
            return
        own = [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, settings in zip(self._groups(), own, strict=True):
            group.update(settings)
        scheduler = cast(LRScheduler, self.lr_scheduler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no step precedes
            rates = scheduler.get_lr()
        scheduler._last_lr = list(rates)  # what is logged for the next step
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = rate

    def _groups(self) -> list[dict[str, Any]]:
        assert self.optimizer is not None
        return self.optimizer.param_groups

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A step on a batch.

        Raises:
            AudioError: one recording too many cannot be read.
            TrainingError: the losses of steps before were not looked at.
        """
        ids: list[str] = inputs.pop(IDS)
        self._count_unreadable(inputs.pop(UNREADABLE))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._forget_gradients_of_untrained_parts()
        self._unchecked.append((loss, ids))
        if len(self._unchecked) > self.args.gradient_accumulation_steps:  # `_get_grad_norm` is transformers' own
            raise TrainingError("this transformers does not let losses be checked in time: install an older version")
        self.audio_seconds += sum(self.durations[utterance_id] for utterance_id in ids)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm that the Trainer logs; if it or a loss is not finite, a TrainingError, before the weights change."""
        norm = super()._get_grad_norm(model, grad_norm)
        steps, self._unchecked = self._unchecked, []
        # Losses and gradients together, as the host waits for the device to know them.
        if not torch.isfinite(torch.stack([loss for loss, _ in steps]).sum() + _whole(norm)):
            raise self._not_finite(steps)
        return norm

    def _not_finite(self, steps: Sequence[tuple[Tensor, list[str]]]) -> TrainingError:
        """The error of a step, given the loss of each micro-batch with the ids of its utterances."""
        wrong = [ids for loss, ids in steps if not torch.isfinite(loss)]
        ids = [utterance_id for of_loss in wrong or [ids for _, ids in steps] for utterance_id in of_loss]
        named = ", ".join(ids[:NAMED_IDS]) + (f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else "")
        return TrainingError(
            f"the {'loss' if wrong else 'gradient'} of step {self.state.global_step + 1} is not finite; its utterances:"
            f" {named}. Look at them, or lower --learning_rate; the last checkpoint is whole"
        )

    def prediction_step(  # type: ignore[override]  # as Seq2SeqTrainer's own is
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A batch of an evaluation; the labels of blank rows stay blank.

        Raises:
            AudioError: one recording too many cannot be read.
        """
        self._count_unreadable(inputs[UNREADABLE])
        given = {name: value for name, value in inputs.items() if name not in (IDS, UNREADABLE, "ctc_labels")}
        is_label = given["labels"] != IGNORED_LABEL
        loss, texts, labels = super().prediction_step(model, given, prediction_loss_only, ignore_keys, **options)
        assert isinstance(loss, Tensor)
        assert isinstance(labels, Tensor)
        count = is_label.sum()
        self._evaluated += torch.stack([loss.cpu() * count, count])
        return (
            loss,
            cast(Tensor, texts),
            labels.masked_fill(~is_label.any(dim=1, keepdim=True).to(labels.device), IGNORED_LABEL),
        )

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """An evaluation; its loss is the mean over all labels.

        The Trainer's own depends on which utterances share a batch, and so on the number of processes.
        """
        self._evaluated.zero_()
        output = super().evaluation_loop(*arguments, **options)
        loss, count = self.accelerator.reduce(self._evaluated.to(self.args.device)).tolist()
        assert output.metrics is not None
        output.metrics["eval_loss"] = loss / max(count, 1)
        return output

    def _count_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """Name and count what a process could not read; all processes know of all, so that they stop together."""
        new = {
            utterance_id: reason for utterance_id, reason in unreadable.items() if utterance_id not in self.unreadable
        }
        for reason in new.values():
            tqdm.write(f"left out: {reason}", file=sys.stderr)
        # With one process nobody waits for the device.
        several = self.accelerator.num_processes > 1
        if self.accelerator.reduce(torch.tensor(len(new), device=self.args.device)).item() if several else new:
            for found in gather_object([new]):
                self.unreadable.update(found)
            self._require_few_unreadable()

    def _require_few_unreadable(self) -> None:
        if len(self.unreadable) > self.max_unreadable:
            raise AudioError(
                f"{list(self.unreadable.values())[-1]}; that makes {len(self.unreadable)} recordings that cannot be"
                f" read, more than --max_unreadable {self.max_unreadable}"
            )

    def _forget_gradients_of_untrained_parts(self) -> None:
        """Drop gradients that would count in the norm that gradients are clipped to, and in AdamW's averages."""
        trains = {part: self.schedule.trains(part, self.state.global_step, self.state.max_steps) for part in PARTS}
        for name, parameter in self.trained_model.named_parameters():
            if not trains[part_of(name)]:
                parameter.grad = None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if self.args.should_save:  # one that is there, after going on from an older one, is whole no longer
                (folder / COMPLETE_NAME).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)


class _StepCounter(LRScheduler):
    """A scheduler that is stored as the number of its steps alone."""

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this version, or of an older one, which stored more."""
        self.last_epoch = state_dict["last_epoch"]


class _ByStep(_StepCounter, LambdaLR):
    """The rates of a `Schedule`."""


class _OneCycle(_StepCounter, OneCycleLR):
    """Torch's one-cycle schedule."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state; if the run is now shorter than what was done already, the schedule is at its end."""
        self.last_epoch = min(state_dict["last_epoch"], self.total_steps)


class TellEpoch(TrainerCallback):
    """Tell the data which epoch begins; accelerate's wrappers do so only for some kinds of samplers."""

    def __init__(self, trainer: Any) -> None:  # of `batches` and a `train_dataset` that knows epochs
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **report: Any
    ) -> None:
        """`state.epoch` is a fraction where a run is resumed within an epoch."""
        epoch = int(state.epoch or 0)
        self._trainer.train_dataset.set_epoch(epoch)
        self._trainer.batches.set_epoch(epoch)


def part_of(name: str) -> str:
    """The part of the schedule that a parameter belongs to; a CTC head that is trained goes with the adapter."""
    return "adapter" if name.startswith(HEAD_PREFIX) else name.partition(".")[0]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a full disk brings about into one line.

    Raises:
        TrainingError: `folder` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save has no error class of its own
        raise not_written(folder, error) from error


def not_written(folder: Path, error: Exception) -> TrainingError:
    """The error if `folder` cannot be written."""
    return TrainingError(
        f"{folder} cannot be written ({first_line(error)}): make room, then go on with --resume_from latest; what was"
        " saved before is whole"
    )
