"""How features are computed: precision, batches that fit the device, and stages that overlap."""

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import ShardWriter
from asr_doge.errors import ConfigError
from asr_doge.inference import features as features_module
from asr_doge.inference.feature_computation import batch_seconds_that_fit, largest_batch_seconds
from asr_doge.models import LoadedEncoder
from asr_doge.models.encoders import ENCODERS, SpeechEncoderOutput
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from tests.inference.runs_of_features import counts, features


def test_tf32_is_refused_where_there_is_none(corpus: Path, granite_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--compute_dtype tf32 cannot be used: .* this is cpu; give fp32 or bf16$"):
        features(corpus, granite_folder, compute_dtype="tf32")
    assert not (corpus / "features").exists()


@pytest.mark.parametrize(
    ("peak", "free", "seconds"),
    # Of 0.7 of the free memory; never less than a minute, nor more than 64.
    [(100, 285, 60.0), (100, 286, 120.0), (100, 1142, 240.0), (100, 1143, 480.0), (100, 1, 60.0), (1, 10**9, 3840.0)],
)
def test_batches_fill_the_memory_by_doubling(peak: int, free: int, seconds: float) -> None:
    assert largest_batch_seconds(peak, free) == seconds


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("no such kernel")]
)
def test_a_device_too_small_for_the_smallest_batch_gets_the_smallest(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And any other error stays one. Torch's counters are of a GPU, which this machine may lack."""

    class Full:
        device, sampling_rate = torch.device("cuda"), 16_000
        encoder = SimpleNamespace(has_ctc=True)

        def encode(self, clips: list[NDArray[np.float32]], **_: object) -> None:
            raise error

    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    full = cast(LoadedEncoder, Full())
    if isinstance(error, torch.OutOfMemoryError):
        assert batch_seconds_that_fit(full) == 60.0
    else:
        with pytest.raises(RuntimeError, match="no such kernel"):
            batch_seconds_that_fit(full)


def test_the_device_is_measured_only_if_something_is_left_to_encode(
    corpus: Path, granite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[LoadedEncoder] = []

    def measure(speech_encoder: LoadedEncoder) -> float:
        measured.append(speech_encoder)
        return batch_seconds_that_fit(speech_encoder)

    monkeypatch.setattr(features_module, "batch_seconds_that_fit", measure)
    assert counts(features(corpus, granite_folder)) == (9, 0, 0)
    assert len(measured) == 1
    assert counts(features(corpus, granite_folder)) == (0, 9, 0)
    assert len(measured) == 1


def test_a_batch_that_does_not_fit_is_encoded_in_halves(
    corpus: Path, granite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FeatureCache.open(features(corpus, granite_folder, output_dir=str(tmp_path / "whole")).folder)
    most, encoded = 2, []

    class Small(GraniteSpeechEncoder):
        """On a device with room for a few clips."""

        def forward(self, input_features: Tensor, *arguments: Any, **named: Any) -> SpeechEncoderOutput:
            if len(input_features) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            encoded.append(len(input_features))
            return super().forward(input_features, *arguments, **named)

    monkeypatch.setitem(ENCODERS, "granite_speech", Small)
    cut = FeatureCache.open(features(corpus, granite_folder, output_dir=str(tmp_path / "cut")).folder)
    assert sum(encoded) == 9
    assert max(encoded) == 2
    for id_ in whole:
        torch.testing.assert_close(cut[id_], whole[id_], rtol=1e-3, atol=1e-4)
        ids = cut.features(id_).ctc_ids
        assert ids is not None
        assert torch.equal(ids[:, 0], whole.features(id_).ctc_ids[:, 0])  # type: ignore[index]  # they are there
    most = 0
    with pytest.raises(
        ConfigError, match=r"^a clip does not fit into the memory of cpu: give --compute_dtype bf16, or"
    ):
        features(corpus, granite_folder, output_dir=str(tmp_path / "none"))


def test_the_next_batch_is_encoded_while_one_is_stored(
    corpus: Path, granite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is stored only when the encoder has begun with the next, for which a run in turns would wait in vain."""
    begun, encoded, stored = threading.Semaphore(0), itertools.count(1), itertools.count(1)
    add = ShardWriter.add

    class Counted(GraniteSpeechEncoder):
        def forward(self, *arguments: Any, **named: Any) -> SpeechEncoderOutput:
            if next(encoded) > 1:
                begun.release()
            return super().forward(*arguments, **named)

    def add_late(shard: ShardWriter, *arguments: Any) -> None:
        if next(stored) < 9:  # of nine batches
            assert begun.acquire(timeout=60)
        add(shard, *arguments)

    monkeypatch.setitem(ENCODERS, "granite_speech", Counted)
    monkeypatch.setattr(ShardWriter, "add", add_late)
    assert counts(features(corpus, granite_folder, batch_seconds=0.1)) == (9, 0, 0)
