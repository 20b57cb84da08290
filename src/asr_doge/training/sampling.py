"""How transformers' Trainer comes by its batches: of like length, and resumed in the middle of an epoch.

Promises: with `LengthBatches` the Trainer's processes deal its batches out among themselves, and a resumed run goes on
with the batch that comes next. It knows neither audio nor models.
"""

from typing import Any

from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asr_doge.data.batching import LengthBatches
from asr_doge.training.datasets import UtteranceDataset


class SpeechTrainer(Seq2SeqTrainer):
    """The Trainer, with batches of like length if they are given.

    Args:
        batches: which utterances share a step; None for as many utterances a step as its arguments say, at random.
        arguments: of `Seq2SeqTrainer`.
    """

    def __init__(self, *arguments: Any, batches: LengthBatches | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.batches = batches
        self.add_callback(_TellEpoch(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As transformers does it, which has no place for a batch sampler."""
        if self.batches is None:
            return super().get_train_dataloader()
        assert self.train_dataset is not None  # the Trainer itself could not train without
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)


class _TellEpoch(TrainerCallback):
    """Tell the data which epoch begins; accelerate's wrappers do so only for some kinds of samplers."""

    def __init__(self, trainer: SpeechTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **report: Any
    ) -> None:
        """`state.epoch` is a fraction where a run is resumed within an epoch."""
        epoch = int(state.epoch or 0)
        if isinstance(self._trainer.train_dataset, UtteranceDataset):
            self._trainer.train_dataset.set_epoch(epoch)
        if self._trainer.batches is not None:
            self._trainer.batches.set_epoch(epoch)
