"""Trainer callbacks: when a run stops, which checkpoints it keeps, what it shows.

Promises: `best` is always a whole checkpoint, that of the lowest dev CER so far; a `checkpoint-N` folder is marked once
it is whole, and older ones are removed only then; Ctrl-C and SIGTERM end the run at the end of a step, saved.
They know nothing of the model or the data.
"""

import copy
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    GenerationConfig,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from asr_doge.models import LoadedModel
from asr_doge.progress import ProgressLines, progress_bar
from asr_doge.training.curves import draw_curves
from asr_doge.training.evaluation import Evaluation
from asr_doge.training.record import write_record
from asr_doge.training.resuming import COMPLETE_NAME, Lineage, remove_old
from asr_doge.training.trainer import SpeechTrainer, writing

HYPOTHESES_NAME = "hypotheses.jsonl"
"""File in the run's folder with the hypotheses of the last evaluation."""
SECONDS_BETWEEN_DRAWINGS = 60.0


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping whose count continues after a resume, where that of transformers starts again.

    Args:
        patience: evaluations without a lower dev CER.
        begin: step that evaluations count from, as of `KeepBest`: a CER on another dev set says nothing.
        epochs_before: where counting begins: a stage at its end, its rate near zero, gets no better, and is not to keep
            the next from coming.
    """

    def __init__(self, patience: int, begin: int = 0, epochs_before: float = 0.0) -> None:
        super().__init__(patience)
        self.begin = begin
        self.epochs_before = epochs_before

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **report: Any
    ) -> None:
        """Count the evaluations since the best one of the run that is resumed."""
        super().on_train_begin(args, state, control, **report)
        evaluations = [entry for entry in state.log_history if "eval_cer" in entry and entry["step"] > self.begin]
        cers = [entry["eval_cer"] for entry in evaluations]
        since_best = evaluations[cers.index(min(cers)) + 1 :] if cers else []
        state.best_metric = min(cers, default=None)  # which the Trainer has from the checkpoint, and compares with
        self.early_stopping_patience_counter = sum(entry["epoch"] > self.epochs_before for entry in since_best)

    def on_evaluate(  # type: ignore[override]  # as transformers' own subclass has it
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **report: Any,
    ) -> None:
        """Count, unless it is too early."""
        if state.epoch is not None and state.epoch > self.epochs_before:
            super().on_evaluate(args, state, control, metrics, **report)


class KeepBest(TrainerCallback):
    """Write `best` whenever an evaluation has the lowest dev CER so far.

    Args:
        trainer, loaded, generation_config: of the run.
        folder: `best`.
        begin: step that evaluations count from. One that went back to an earlier checkpoint counts from there, since
            what `best` held then may have been written over by what is now left behind.
    """

    def __init__(
        self,
        trainer: SpeechTrainer,
        loaded: LoadedModel,
        generation_config: GenerationConfig,
        folder: Path,
        begin: int = 0,
    ) -> None:
        self.begin = begin
        self.trainer = trainer
        self.loaded = loaded
        self.generation_config = generation_config  # the Trainer fills up the model's own with its defaults
        self.folder = folder

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **report: Any) -> None:
        """Compare with the evaluations before, which the Trainer keeps over a resume."""
        earlier = cers_between(state, self.begin, state.global_step)
        if earlier and report["metrics"]["eval_cer"] >= min(earlier):
            return
        weights = self.trainer.trained_weights()
        if state.is_world_process_zero:
            self.loaded.model.generation_config = copy.deepcopy(self.generation_config)
            with writing(self.folder):
                self.loaded.save(self.folder, weights)


def cers_between(state: TrainerState, after: int, before: int | None = None) -> list[float]:
    """Dev CERs of the evaluations between two steps, both excluded; None for no end."""
    evaluations = [entry for entry in state.log_history if "eval_cer" in entry]
    return [
        entry["eval_cer"]
        for entry in evaluations
        if after < entry["step"] and (before is None or entry["step"] < before)
    ]


class MarkComplete(TrainerCallback):
    """Mark each checkpoint once all processes have written their share, and remove all but the run's newest few.

    Each is given the record of the run, which says under which settings it was written. Not left to the Trainer's own
    `save_total_limit`, which may remove a whole checkpoint while the newest is half written, and counts those that a
    full disk or a kill cut short.
    """

    def __init__(self, keep: int, lineage: Lineage, record: Mapping[str, Any]) -> None:
        self.keep = keep
        self.lineage = lineage
        self.record = record

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark, then remove."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            newest = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            with writing(newest):
                write_record(newest, self.record)
                (newest / COMPLETE_NAME).touch()
            remove_old(newest.parent, self.lineage, self.keep)


class StopOnInterrupt(TrainerCallback):
    """At Ctrl-C or SIGTERM, finish the step, save and stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._prints = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen for the signals; of several processes one prints that."""
        self._prints = state.is_world_process_zero
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self._before = {}  # not the main thread, which alone may listen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop all processes at the same step, whichever of them got the signal."""
        asked = self.asked
        if torch.distributed.is_initialized():
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked:  # what was not logged yet is now: the running mean is in no checkpoint
            self.asked = control.should_log = control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to their handlers before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if self._prints:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)


def train_until_stopped(trainer: Trainer, checkpoint: Path | None) -> bool:
    """Train, from a checkpoint if one is given; whether Ctrl-C or SIGTERM ended it, with the run saved."""
    stop = StopOnInterrupt()
    trainer.add_callback(stop)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        stop.restore()
    return stop.asked


class ShowEvaluation(TrainerCallback):
    """Keep `hypotheses.jsonl` and, less often, the curves of a run's folder up to date; `begin` is as of `KeepBest`."""

    def __init__(self, evaluation: Evaluation, folder: Path, begin: int = 0) -> None:
        self.evaluation = evaluation
        self.folder = folder
        self.begin = begin
        self._drawn = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the hypotheses."""
        if state.is_world_process_zero:
            self.evaluation.write_hypotheses(self.folder / HYPOTHESES_NAME)
            if time.monotonic() - self._drawn > SECONDS_BETWEEN_DRAWINGS:
                self.draw(state)

    def draw(self, state: TrainerState) -> None:
        """Draw the curves anew."""
        if state.is_world_process_zero:
            draw_curves(self.folder, state.log_history, self.evaluation.hypotheses, self.begin)
            self._drawn = time.monotonic()


class CountsAudio(Protocol):
    """A Trainer that counts the seconds of audio it has trained on."""

    audio_seconds: float


class Progress(ProgressCallback):
    """Loss, learning rate and seconds of audio a second: a bar on terminals, else a line every so often.

    A line for each evaluation too, and one for the loss of the first step.
    """

    def __init__(self, trainer: CountsAudio) -> None:
        super().__init__()
        self.trainer = trainer
        self._start = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar, where a resumed run left off."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step"
            )
        self._start = time.perf_counter()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: DataLoader[Any] | None = None,
        **_: Any,
    ) -> None:
        """Show how far an evaluation is, beneath the bar of training."""
        if self.training_bar is not None and not isinstance(self.training_bar, ProgressLines):
            super().on_prediction_step(args, state, control, eval_dataloader)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest figures."""
        if self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            speed = self.trainer.audio_seconds * args.world_size / seconds
            shown = {"loss": f"{logs['loss']:.3f}", "lr": f"{logs['learning_rate']:.1e}", "audio": f"{speed:.0f} s/s"}
            self.training_bar.set_postfix(shown)
            if state.global_step == 1:
                self.training_bar.write(f"step 1 of {state.max_steps}: loss {shown['loss']}", sys.stderr)
        if "eval_cer" in logs:
            rates = ", ".join(f"{name.upper()} {100 * logs[f'eval_{name}']:.2f} %" for name in ("wer", "cer"))
            self.training_bar.write(f"step {state.global_step}: dev {rates}, loss {logs['eval_loss']:.3f}", sys.stderr)
