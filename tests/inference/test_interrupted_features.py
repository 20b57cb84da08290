"""A cache whose making was killed, stopped, shared out, or ran out of disk is made whole by running it again."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asr_doge.data import read_manifest, write_manifest
from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.stores import LocalStore, open_store
from asr_doge.errors import DataError
from asr_doge.models.encoders import ENCODERS, SpeechEncoderOutput
from asr_doge.models.encoders.granite_speech import GraniteSpeechEncoder
from tests.inference.runs_of_features import contents, features
from tests.killing import kill_at_change

PIECEMEAL: dict[str, Any] = {"shard_minutes": 0.02, "batch_seconds": 2.0, "augment_copies": 1}
"""Many small files and batches, so that there is something to interrupt and to divide."""


def run_and_die(corpus: Path, encoder: Path, folder: Path, written: int) -> None:
    """In a process of its own: be killed half-way through the writing of a file."""
    files = 0

    def write(store: LocalStore, name: str, content: bytes) -> None:
        nonlocal files
        if files == written:
            (store.folder / f"{name}.{os.getpid()}.tmp").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        files += 1
        write_atomically(store.folder / name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "write", write)
        features(corpus, encoder, output_dir=str(folder), **PIECEMEAL)


def run_part(corpus: Path, encoder: Path, folder: Path, part: str) -> None:
    features(corpus, encoder, output_dir=str(folder), shard=part, **PIECEMEAL)


PRELOADED = (__name__, "scipy.signal", "tests.models.tiny", "transformers.models.blip_2.modeling_blip_2")
"""What a run imports sooner or later."""


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """A process forked from one that has imported what it needs, and computed nothing.

    Forked from this one, which has computed in threads, it sometimes waited for ever on a busy processor: below
    `torch.stft`, for a lock of MKL's (`mm_account_ptr_by_tid`) that was locked as it was forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.fixture
def whole(corpus: Path, granite_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    features(corpus, granite_folder, output_dir=str(tmp_path / "whole"), **PIECEMEAL)
    found = contents(tmp_path / "whole")
    assert len(found) > 3
    return found


def run_and_be_killed(corpus: Path, encoder: Path, folder: Path, change: int) -> None:
    """In a process of its own: be killed just before the `change`-th change to the folder."""
    left = itertools.count(change, -1)
    kill_at_change(folder, lambda: next(left) <= 1)
    features(corpus, encoder, output_dir=str(folder), **PIECEMEAL)


def test_killed_again_and_again_until_it_is_whole(
    corpus: Path, granite_folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """When a file is written and not yet renamed, when it is, and when the next is about to be opened."""
    exits: list[int | None] = []
    for change in [change for _ in whole for change in (5, 10, 8)]:
        process = start(run_and_be_killed, corpus, granite_folder, tmp_path / "cut", change)
        process.join()
        exits.append(process.exitcode)
        left = contents(tmp_path / "cut")
        assert {name: content for name, content in left.items() if name in whole}.items() <= whole.items()
        if exits[-1] == 0:
            break
    assert exits[-1] == 0
    assert exits.count(-signal.SIGKILL) == len(exits) - 1 > 3
    assert contents(tmp_path / "cut") == whole


@pytest.mark.parametrize("written", [0, 2])
def test_killed_at_any_moment_and_run_again(
    corpus: Path, granite_folder: Path, tmp_path: Path, whole: dict[str, bytes], written: int
) -> None:
    process = start(run_and_die, corpus, granite_folder, tmp_path / "cut", written)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(contents(tmp_path / "cut")) == written + 1  # whole ones, and the temporary one
    before = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in whole.keys() & contents(tmp_path / "cut")}
    assert len(before) == written
    report = features(corpus, granite_folder, output_dir=str(tmp_path / "cut"), **PIECEMEAL)
    assert report.encoded + report.kept == 9
    assert (report.kept > 0) == (written > 0)
    assert contents(tmp_path / "cut") == whole
    assert before == {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in before}  # not redone


def test_three_processes_are_one_byte_for_byte(
    corpus: Path, granite_folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    parts = [start(run_part, corpus, granite_folder, tmp_path / "parts", f"{number}/3") for number in (1, 2, 3)]
    for process in parts:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "parts") == whole
    assert len(FeatureCache.open(tmp_path / "parts")) == 9


def test_ctrl_c_loses_no_batch(
    corpus: Path, granite_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_seconds": 2.0}  # one file
    features(corpus, granite_folder, output_dir=str(tmp_path / "whole"), **options)
    batches = 0

    class Interrupted(GraniteSpeechEncoder):
        def forward(self, *arguments: Any, **named: Any) -> SpeechEncoderOutput:
            nonlocal batches
            batches += 1
            if batches == 3:
                raise KeyboardInterrupt
            return super().forward(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setitem(ENCODERS, "granite_speech", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            features(corpus, granite_folder, output_dir=str(tmp_path / "cut"), **options)
    report = features(corpus, granite_folder, output_dir=str(tmp_path / "cut"), **options)
    assert report.kept >= 2
    assert report.encoded + report.kept == 9
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_parts_elsewhere_are_merged_by_listing(
    corpus: Path, granite_folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    url = "memory://features-in-parts"
    for part in ("2/2", "1/2"):
        features(corpus, granite_folder, output_dir=url, shard=part, **PIECEMEAL)
    store = open_store(url)
    assert {name: store.read(name, 0, size) for name, size in store.sizes().items()} == whole


def test_a_disk_that_is_too_small(corpus: Path, granite_folder: Path) -> None:
    """A manifest that claims more audio than any disk holds the features of."""
    train = read_manifest(corpus / "train_manifest.json")
    write_manifest(corpus / "train_manifest.json", [replace(utterance, duration=1e15) for utterance in train])
    with pytest.raises(DataError, match=r"features has .* free and the features need about [\d,]+\.\d TB: make room"):
        features(corpus, granite_folder)
    assert not FeatureCache.exists(corpus / "features")


def test_a_disk_that_fills_up_leaves_whole_files(
    corpus: Path, granite_folder: Path, small_disk: Path, whole: dict[str, bytes]
) -> None:
    """What others write meanwhile is not in the estimate."""
    folder, fill = small_disk / "features", small_disk / "fill"
    folder.mkdir()
    needed = sum(map(len, whole.values()))
    estimate = PIECEMEAL | {"output_dir": str(folder)}
    fill.write_bytes(bytes(shutil.disk_usage(small_disk).free - needed // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "free_bytes", lambda _: None)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): check the folder and"):
            features(corpus, granite_folder, **estimate)
    left = contents(folder)
    assert left.items() < whole.items()
    fill.unlink()
    features(corpus, granite_folder, **estimate)
    assert contents(folder) == whole


def test_a_read_only_disk_is_named(corpus: Path, granite_folder: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(
        DataError, match=r"disk/features cannot be written to \(Read-only file system\): choose another"
    ):
        features(corpus, granite_folder, output_dir=str(small_disk / "features"))
