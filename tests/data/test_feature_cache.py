"""What was stored comes back; what is stale, half-written or of another encoder never does."""

import json
import multiprocessing
import os
import pickle
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr_doge.data.feature_cache import FeatureCache, FeatureCacheWriter, audio_stamp
from asr_doge.data.manifest import Utterance
from asr_doge.errors import DataError

SOURCE: dict[str, str | int | None] = {"encoder": "nano", "fingerprint": "ab12", "front_end": 1, "revision": None}


def features(number: int, length: int = 3) -> Tensor:
    return torch.full((length, 4), float(number))


def fill(folder: Path, ids: range | list[str], stamp: str = "1-1", shard_bytes: int = 100) -> None:
    """Each utterance of 48 bytes; three to a shard."""
    with FeatureCacheWriter(folder, SOURCE, shard_bytes) as writer:
        for number, id_ in enumerate(ids):
            writer.add(str(id_), stamp, features(number))


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("features-*"))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text() | st.sampled_from(["__metadata__", "../x", "a/b", "\udc80", "\\udc80", "\x00"]),
        st.tuples(st.integers(0, 5), st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
    ),
    st.integers(1, 400),
)
def test_round_trip(stored: dict[str, tuple[int, torch.dtype]], shard_bytes: int) -> None:
    tensors = {id_: torch.randn(length, 4).to(dtype) for id_, (length, dtype) in stored.items()}
    with TemporaryDirectory() as folder:
        with FeatureCacheWriter(folder, SOURCE, shard_bytes) as writer:
            for id_, tensor in tensors.items():
                writer.add(id_, f"stamp {id_}", tensor)
        cache = FeatureCache.open(folder, expected_source=SOURCE)
        assert cache.source == SOURCE
        assert sorted(cache) == sorted(tensors)
        assert len(cache) == len(tensors)
        for id_, tensor in tensors.items():
            assert id_ in cache
            assert torch.equal(cache[id_], tensor)
            assert cache[id_].dtype == tensor.dtype
            assert cache.num_embeddings(id_) == len(tensor)
            assert cache.stamp(id_) == f"stamp {id_}"


def test_slices_of_one_batch_and_changes_by_the_caller(tmp_path: Path) -> None:
    batch = torch.randn(2, 5, 4, requires_grad=True)
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        writer.add("a", "1", batch[0])
        writer.add("b", "1", batch[1, :3])
        with torch.no_grad():
            expected = batch[1, :3].clone()
            batch.zero_()  # the encoder may reuse its output
    cache = FeatureCache.open(tmp_path)
    cache["b"].zero_()
    assert torch.equal(cache["b"], expected)


def test_interrupted_run_keeps_its_finished_shards(tmp_path: Path) -> None:
    writer = FeatureCacheWriter(tmp_path, SOURCE, shard_bytes=100)
    for number in range(8):
        writer.add(str(number), "1-1", features(number))
    del writer  # killed: the last two were never written
    (tmp_path / "features-00002.safetensors.99.tmp").write_bytes(b"half")
    (tmp_path / "features-00002.safetensors").write_bytes(b"whole, but not in the index")
    assert set(FeatureCache.open(tmp_path)) == set("012345")
    with FeatureCacheWriter(tmp_path, SOURCE, shard_bytes=100) as writer:
        missing = [number for number in range(8) if not writer.holds(str(number), "1-1")]
        assert missing == [6, 7]
        for number in missing:
            writer.add(str(number), "1-1", features(number))
    cache = FeatureCache.open(tmp_path)
    assert all(torch.equal(cache[str(number)], features(number)) for number in range(8))
    assert shards(tmp_path) == [f"features-0000{n}.safetensors" for n in range(3)]


def test_kill_between_shard_and_index(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    index = (tmp_path / "index.json").read_bytes()
    fill(tmp_path, ["new1", "new2", "new3"])
    (tmp_path / "index.json").write_bytes(index)
    assert set(FeatureCache.open(tmp_path)) == set("012")
    fill(tmp_path, ["other"])
    assert set(FeatureCache.open(tmp_path)) == {*"012", "other"}


@pytest.mark.parametrize("remaining", [0, 50, None])
def test_shard_that_lost_its_tail(tmp_path: Path, remaining: int | None) -> None:
    fill(tmp_path, range(6))
    shard = tmp_path / "features-00001.safetensors"
    if remaining is None:
        shard.unlink()
    else:
        os.truncate(shard, remaining)
    with pytest.raises(DataError, match=r"features-00001.safetensors is missing or not whole; run 'asr-doge features'"):
        FeatureCache.open(tmp_path)
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        assert [number for number in range(6) if not writer.holds(str(number), "1-1")] == [3, 4, 5]
        for number in (3, 4, 5):
            writer.add(str(number), "1-1", features(number))
    cache = FeatureCache.open(tmp_path)
    assert all(torch.equal(cache[str(number)], features(number)) for number in range(6))


def test_stale_features_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, range(3), stamp="old")
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        assert not writer.holds("1", "new")
        writer.add("1", "new", features(99, length=5))
        assert writer.holds("1", "new")
    cache = FeatureCache.open(tmp_path)
    assert torch.equal(cache["1"], features(99, length=5))
    assert (cache.stamp("1"), cache.stamp("2")) == ("new", "old")
    fill(tmp_path, range(3), stamp="newest")
    assert len(shards(tmp_path)) == 1  # nothing of the former shards is in use


def test_added_twice_before_a_shard_is_written(tmp_path: Path) -> None:
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        writer.add("a", "1", features(1))
        writer.add("a", "2", features(2))
        assert writer.holds("a", "2")
        assert not writer.holds("a", "1")
    assert torch.equal(FeatureCache.open(tmp_path)["a"], features(2))


def test_another_source_starts_afresh(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    (tmp_path / "notes.txt").write_text("not ours")
    other = {**SOURCE, "fingerprint": "cd34"}
    with pytest.raises(DataError, match=r"another encoder \(fingerprint 'ab12', not 'cd34'\): run 'asr-doge features'"):
        FeatureCache.open(tmp_path, expected_source=other)
    with pytest.raises(DataError, match=r"\(dtype None, not 'float16'\)"):
        FeatureCache.open(tmp_path, expected_source={**SOURCE, "dtype": "float16"})
    for _ in range(2):  # the second finds the folder as free as the first
        with pytest.raises(DataError, match=r"holds the features of 3 utterances by another encoder: .* --overwrite"):
            FeatureCacheWriter(tmp_path, other)
    assert len(FeatureCache.open(tmp_path, expected_source=SOURCE)) == 3
    with FeatureCacheWriter(tmp_path, other, overwrite=True) as writer:
        assert not writer.holds("0", "1-1")
    assert len(FeatureCache.open(tmp_path, expected_source=other)) == 0
    assert shards(tmp_path) == []
    assert (tmp_path / "notes.txt").exists()


def test_an_empty_cache_of_another_source_is_in_nobodys_way(tmp_path: Path) -> None:
    FeatureCacheWriter(tmp_path, SOURCE).close()
    FeatureCacheWriter(tmp_path, {**SOURCE, "fingerprint": "cd34"}).close()
    assert FeatureCache.open(tmp_path).source["fingerprint"] == "cd34"


def test_marks_of_unreadable_recordings_come_and_go(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        for id_ in ("0", "1", "gone"):
            writer.mark_unreadable(id_, "no sound")
        writer.add("0", "2-2", features(5))
    assert set(FeatureCache.open(tmp_path).unreadable) == {"1", "gone"}
    with FeatureCacheWriter(tmp_path, SOURCE) as writer:
        assert writer.holds("1", None)
        assert not writer.holds("gone", None)
        writer.mark_readable("1")
        writer.mark_readable("never marked")
    assert set(FeatureCache.open(tmp_path).unreadable) == {"gone"}


def test_error_in_the_run_keeps_what_was_computed(tmp_path: Path) -> None:
    def interrupted_run() -> None:
        with FeatureCacheWriter(tmp_path, SOURCE) as writer:
            writer.add("a", "1", features(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert "a" in FeatureCache.open(tmp_path)


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with FeatureCacheWriter(tmp_path, SOURCE), pytest.raises(DataError, match="being written by another process"):
        FeatureCacheWriter(tmp_path, SOURCE)
    FeatureCacheWriter(tmp_path, SOURCE).close()


def read_in_child(cache: FeatureCache, queue: "multiprocessing.Queue[float]") -> None:
    queue.put(cache["1"].sum().item())


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")])
def test_worker_processes_read_for_themselves(tmp_path: Path, context: ForkContext | SpawnContext) -> None:
    fill(tmp_path, range(3))
    cache = FeatureCache.open(tmp_path)
    assert cache["0"].sum() == 0  # the parent holds an open shard
    queue = context.Queue()
    worker = context.Process(target=read_in_child, args=(cache, queue))
    worker.start()
    assert queue.get(timeout=60) == 12.0
    worker.join()


def test_pickled_cache_reads_on(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    cache = FeatureCache.open(tmp_path)
    _ = cache["0"]
    assert torch.equal(pickle.loads(pickle.dumps(cache))["2"], features(2))


def test_require_fresh_names_missing_and_stale(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"sound")
    here, moved = (Utterance(id_, tmp_path / f"{id_}.wav", "x", "x", 1.0) for id_ in ("a", "moved"))
    folder = tmp_path / "cache"
    with FeatureCacheWriter(folder, SOURCE) as writer:
        writer.add("a", audio_stamp(audio), features(1))
        writer.add("moved", "5-5", features(2))
    cache = FeatureCache.open(folder)
    cache.require_fresh([here, moved])
    with pytest.raises(DataError, match=r"lacks 1 of 2 utterances .the first: 'b'"):
        cache.require_fresh([here, Utterance("b", audio, "x", "x", 1.0)])
    os.utime(audio, ns=(1, 1))
    with pytest.raises(DataError, match=r"is older than the recordings of 1 of 2 utterances"):
        cache.require_fresh([here, moved])
    with pytest.raises(DataError, match="lacks utterance 'b'"):
        _ = cache["b"]


def test_stamp_follows_content_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    first = audio_stamp(path)
    assert audio_stamp(path) == first
    path.write_bytes(b"three")
    assert audio_stamp(path) != first
    with pytest.raises(DataError, match=r"gone.wav cannot be read"):
        audio_stamp(tmp_path / "gone.wav")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 3}', json.dumps({"format": "x", "shards": {}})])
def test_unusable_index(tmp_path: Path, content: str) -> None:
    fill(tmp_path, range(3))
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index.json is .*run 'asr-doge features' again"):
        FeatureCache.open(tmp_path)
    fill(tmp_path, range(3))
    assert len(FeatureCache.open(tmp_path)) == 3


def test_folder_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no feature cache .*run 'asr-doge features'"):
        FeatureCache.open(tmp_path / "nowhere")


def test_misuse_is_refused(tmp_path: Path) -> None:
    writer = FeatureCacheWriter(tmp_path, SOURCE)
    with pytest.raises(ValueError, match=r"expected embeddings \[T', D\]"):
        writer.add("a", "1", torch.zeros(1, 2, 3))
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add("a", "1", features(1))
