"""Examples that bear the name of their utterance, so that training can say which one is at fault.

Promises: a recording that cannot be read does not stop a batch: the batch goes on without it, and says so.
They read nothing themselves (see `asr_doge.training.datasets`), and do not know how many faults are too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from asr_doge.data.manifest import Utterance
from asr_doge.errors import AudioError
from asr_doge.training.datasets import Example, UtteranceDataset, collate_examples

IDS, UNREADABLE = "utterance_ids", "unreadable"
"""What a batch holds beside the model's inputs: ids of its utterances; of those left out, `{id: reason}`."""


@dataclass(frozen=True)
class NamedExample:
    """An example, or the reason why there is none."""

    id: str
    example: Example | None
    reason: str = ""


class NamedExamples(Dataset[NamedExample]):
    """The examples of a dataset under their utterances' ids."""

    def __init__(self, examples: UtteranceDataset) -> None:
        self.examples = examples

    @property
    def utterances(self) -> Sequence[Utterance]:
        """Those that the examples are of."""
        return self.examples.utterances

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose variations come next."""
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> NamedExample:
        utterance_id = self.utterances[index].id
        try:
            return NamedExample(utterance_id, self.examples[index])
        except AudioError as error:
            return NamedExample(utterance_id, None, str(error))


def collate_named(examples: Sequence[NamedExample]) -> dict[str, Any]:
    """A batch of the examples that there are, with their ids and the reasons of the others.

    Raises:
        AudioError: there is not one.
    """
    readable = [(named.id, named.example) for named in examples if named.example is not None]
    missing = {named.id: named.reason for named in examples if named.example is None}
    if not readable:
        raise AudioError(f"not one recording of a batch can be read; {next(iter(missing.values()))}")
    batch = collate_examples([example for _, example in readable])
    return {**batch, IDS: [utterance_id for utterance_id, _ in readable], UNREADABLE: missing}
