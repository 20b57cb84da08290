"""transformers' Trainer for modules trained by CTC only, on batches of `collate_ctc_examples`.

Promises: batches have utterances of similar length; an evaluation decodes the best path and gives WER and CER over the
whole dev set; an interrupted run can be resumed. The loop is transformers' own.
It does not know what it trains.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer

from asr_doge.data.batching import LengthBatches, SharedBatches
from asr_doge.decoding.ctc import ctc_greedy_ids
from asr_doge.text.scoring import score
from asr_doge.training.callbacks import Progress
from asr_doge.training.ctc_examples import CTCExamples, collate_ctc_examples
from asr_doge.training.ctc_loss import ctc_loss
from asr_doge.training.trainer import TellEpoch

Head = TypeVar("Head", bound=nn.Module)


class CTCHeadStage(nn.Module, Generic[Head]):
    """A CTC head with its loss.

    Args:
        head: maps speech embeddings `[B, T', D]` and their lengths `[B]` to logits `[B, T, V]` and their lengths `[B]`.
        parts: by name, what is trained with it and is not a part of it.
    """

    def __init__(self, head: Head, **parts: nn.Module) -> None:
        super().__init__()
        self.head = head
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(
        self, speech_embeddings: Tensor, speech_lengths: Tensor, ctc_labels: Tensor, ctc_label_lengths: Tensor
    ) -> Tensor:
        """The loss of a `collate_ctc_examples` batch."""
        logits, lengths = self.head(speech_embeddings, speech_lengths)
        return ctc_loss(logits, lengths, ctc_labels, ctc_label_lengths)


class CTCTrainer(Trainer):
    """Trains a `CTCHeadStage`.

    Args:
        model: the stage.
        arguments: of transformers.
        train: examples to train on.
        dev: examples to evaluate on, the shortest first.
        batch_seconds: of audio in a batch, padding included.
        frame_rate_hz: speech embeddings a second, for `audio_seconds`.
        text: gives the text of label ids.
        options: as in `Trainer`.
    """

    def __init__(
        self,
        model: CTCHeadStage[Any],
        arguments: Any,
        train: CTCExamples,
        dev: CTCExamples,
        batch_seconds: float,
        frame_rate_hz: float,
        text: Callable[[Sequence[int]], str],
        **options: Any,
    ) -> None:
        super().__init__(model, arguments, train_dataset=train, eval_dataset=dev, **options)
        self.batches = LengthBatches(_durations(train), batch_seconds, train.seed)
        self.dev_batches = SharedBatches(_durations(dev), batch_seconds)
        self.frame_rate_hz, self.text = frame_rate_hz, text
        self.audio_seconds = 0.0
        """Seconds of audio trained on since this process started, padding included."""
        self.hypotheses: list[str] = []
        """Hypotheses of the last evaluation, in the order of the dev examples."""
        self.add_callback(TellEpoch(self))
        self.remove_callback(ProgressCallback)
        self.add_callback(Progress(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of similar length."""
        loader: DataLoader[Any] = DataLoader(
            cast(CTCExamples, self.train_dataset), batch_sampler=self.batches, collate_fn=collate_ctc_examples
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """The CTC loss of a batch."""
        loss: Tensor = model(**inputs)
        return loss

    def training_step(self, model: Any, inputs: dict[str, Tensor], *rest: Any) -> Tensor:
        """A training step, with its audio counted."""
        size, longest = inputs["speech_embeddings"].shape[:2]
        self.audio_seconds += size * longest / self.frame_rate_hz
        return super().training_step(model, inputs, *rest)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """WER, CER and loss on the dev set, under the Trainer's metric names."""
        stage = cast(CTCHeadStage[Any], self.accelerator.unwrap_model(self.model))
        stage.eval()
        dev = cast(CTCExamples, self.eval_dataset)
        self.hypotheses, losses = [], []
        for batch in self.dev_batches:
            inputs = collate_ctc_examples([dev[place] for place in batch if place is not None])
            inputs = {name: tensor.to(self.args.device) for name, tensor in inputs.items()}
            logits, lengths = stage.head(inputs["speech_embeddings"], inputs["speech_lengths"])
            loss = ctc_loss(logits, lengths, inputs["ctc_labels"], inputs["ctc_label_lengths"])
            losses += [float(loss)] * len(lengths)
            self.hypotheses += [self.text(ids).strip() for ids in ctc_greedy_ids(logits, lengths)]
        scores = score([utterance.text for utterance in dev.utterances], self.hypotheses)
        metrics = {"eval_loss": sum(losses) / len(losses), "eval_wer": scores.wer, "eval_cer": scores.cer}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _durations(examples: CTCExamples) -> list[float]:
    return [utterance.duration for utterance in examples.utterances]
