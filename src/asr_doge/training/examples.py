"""Examples with the id of their utterance, so that training can name the one that is at fault.

Promises: a batch has a row for each of its utterances. The row of a recording that cannot be read is blank: it has no
labels and gives no loss, while every process still makes every step.
They read nothing themselves (see `asr_doge.training.datasets`), and do not know how many faults are too many.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from asr_doge.data.manifest import Utterance
from asr_doge.errors import AudioError
from asr_doge.read_ahead import read_ahead
from asr_doge.training.datasets import Example, UtteranceDataset, collate_examples

IDS, UNREADABLE = "utterance_ids", "unreadable"
"""Keys of a batch beside the model's inputs: ids of its utterances; for those left out, `{id: reason}`."""


@dataclass(frozen=True)
class NamedExample:
    """An example; a blank one has no id, or the reason why it is blank."""

    id: str | None
    example: Example
    reason: str = ""


class NamedExamples(Dataset[NamedExample]):
    """The examples of a dataset with their utterances' ids."""

    def __init__(self, examples: UtteranceDataset) -> None:
        self.examples = examples

    @property
    def utterances(self) -> Sequence[Utterance]:
        """The utterances of the examples."""
        return self.examples.utterances

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose variations come next."""
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int | None) -> NamedExample:
        """An example; for None, an empty place in a batch, a blank one."""
        if index is None:
            return NamedExample(None, self.examples.blank())
        utterance_id = self.utterances[index].id
        try:
            return NamedExample(utterance_id, self.examples[index])
        except AudioError as error:
            return NamedExample(utterance_id, self.examples.blank(), str(error))

    def __getitems__(self, indices: Sequence[int | None]) -> list[NamedExample]:
        """The examples of a batch, which torch asks for at once; those from afar are fetched together."""
        if self.examples.reads_at_once == 1:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(self.examples.reads_at_once) as pool:
            return list(pool.map(self.__getitem__, indices))


class ReadAheadLoader(DataLoader[Any]):
    """Batches in their order, the next of which is read while a step works on the present one.

    In a thread: reading a cache is waiting and copying, for which a process of its own would have to copy once more.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # of torch's own iterator
        return read_ahead(super().__iter__())


def collate_named(examples: Sequence[NamedExample]) -> dict[str, Any]:
    """A batch of the examples, with the ids of those that are not blank and the reasons of the others."""
    batch = collate_examples([named.example for named in examples])
    ids = [named.id for named in examples if named.id is not None and not named.reason]
    return {**batch, IDS: ids, UNREADABLE: {named.id: named.reason for named in examples if named.reason}}
