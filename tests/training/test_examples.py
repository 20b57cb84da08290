"""The examples of a batch come in order, and from a cache elsewhere at the same time."""

import threading
from pathlib import Path

import pytest
import torch

from asr_doge.data import read_manifest
from asr_doge.models import assemble_model
from asr_doge.training.datasets import CachedSpeechDataset, Example, UtteranceDataset
from asr_doge.training.examples import NamedExamples, ReadAheadLoader, collate_named
from asr_doge.training.inputs import REMOTE_READS, open_dataset
from tests.training.conftest import Settings


class Waiting(UtteranceDataset):
    """Gives an example only once as many are asked for."""

    reads_at_once = 4

    def __init__(self, corpus: Path) -> None:
        self.utterances = read_manifest(corpus / "train_manifest.json")
        self.barrier = threading.Barrier(4, timeout=60)

    def __getitem__(self, index: int) -> Example:
        self.barrier.wait()
        return {"labels": torch.tensor([index])}


def test_examples_are_fetched_together_and_come_in_order(corpus: Path) -> None:
    named = NamedExamples(Waiting(corpus)).__getitems__([3, 0, 2, 1])
    assert [int(one.example["labels"]) for one in named] == [3, 0, 2, 1]
    assert [one.id for one in named] == [f"train-{number}" for number in (3, 0, 2, 1)]


def test_a_cache_elsewhere_gives_what_it_gives_here(
    settings: Settings, corpus: Path, cache: Path, granite_folder: Path, doge_folder: Path, tmp_path: Path
) -> None:
    loaded = assemble_model(granite_folder, doge_folder, device="cpu", skip_encoder_weights=True)
    utterances = read_manifest(corpus / "train_manifest.json")
    indices = [5, None, 2, 11, 0]
    batches = []
    for folder, reads in ((str(cache), 1), (f"file://{cache}", REMOTE_READS)):
        examples = open_dataset(settings(tmp_path, features_dir=folder), utterances, loaded, training=True)
        assert isinstance(examples, CachedSpeechDataset)
        assert examples.reads_at_once == reads
        batches.append(NamedExamples(examples).__getitems__(indices))
    for here, elsewhere in zip(*batches, strict=True):
        assert here.id == elsewhere.id
        assert here.example.keys() == elsewhere.example.keys()
        assert all(torch.equal(here.example[name], elsewhere.example[name]) for name in here.example)


def test_the_next_batch_is_read_while_a_step_works_on_one(corpus: Path) -> None:
    """In the order and with the epoch that it would be read in anyway."""
    read: list[int] = []
    second = threading.Event()

    class Noting(UtteranceDataset):
        def __init__(self) -> None:
            self.utterances = read_manifest(corpus / "train_manifest.json")

        def __getitem__(self, index: int) -> Example:
            read.append(index)
            if len(read) == 4:
                second.set()
            return {"labels": torch.tensor([index])}

    loader = ReadAheadLoader(NamedExamples(Noting()), batch_sampler=[[4, 1], [0, 7], [2, 3]], collate_fn=collate_named)
    batches = iter(loader)
    labels = [next(batches)["labels"].ravel().tolist()]
    assert second.wait(60)
    assert read == [4, 1, 0, 7]
    labels += [batch["labels"].ravel().tolist() for batch in batches]
    assert labels == [[4, 1], [0, 7], [2, 3]]


@pytest.mark.parametrize("reads", [1, 3])
def test_an_error_is_the_batchs(corpus: Path, reads: int) -> None:
    class Broken(Waiting):
        reads_at_once = reads

        def __getitem__(self, index: int) -> Example:
            raise KeyError(index)

    with pytest.raises(KeyError, match="7"):
        NamedExamples(Broken(corpus)).__getitems__([7, 8])
