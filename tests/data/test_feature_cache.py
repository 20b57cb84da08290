"""What was stored comes back; what is stale, half-written or of another encoder never does."""

import multiprocessing
import os
import pickle
import uuid
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_folder import shard_count, shard_of
from asr_doge.data.feature_shards import Features, Storage, StorageType, bytes_per_second
from asr_doge.data.fingerprints import fingerprint
from asr_doge.data.manifest import Utterance
from asr_doge.data.stores import RemoteStore
from asr_doge.errors import DataError
from tests.data.feature_caches import SOURCE, add, contents, features, fill, read_in_child

STRANGE_IDS = st.text() | st.sampled_from(["__metadata__", "../x", "a/b", "\udc80", "\ud800", "\\udc80", "\x00"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(STRANGE_IDS, st.integers(0, 5)), st.sampled_from([1, 2, 8]), st.booleans())
def test_round_trip(lengths: dict[str, int], num_shards: int, bf16: bool) -> None:
    stored = {
        id_: Features(
            torch.randn(length, 4).to(torch.bfloat16 if bf16 else torch.float32),
            torch.randint(0, 300, (5 * length, 2)),
            torch.randn(5 * length, 2).to(torch.bfloat16),
        )
        for id_, length in lengths.items()
    }
    storage = Storage("bf16" if bf16 else "fp32", ctc_top_k=2)
    with TemporaryDirectory() as folder:
        with FeatureCacheWriter(folder, SOURCE, storage, num_shards=num_shards) as writer:
            for number in range(num_shards):
                with writer.shard(number) as shard:
                    for id_, one in stored.items():
                        if writer.shard_of(id_) == number:
                            shard.add(id_, f"stamp {id_}", [one, Features(2 * one.embeddings, *ctc(one))])
        if not stored:
            return
        cache = FeatureCache.open(folder, expected_source=SOURCE)
        assert (cache.source, cache.storage) == (SOURCE, storage)
        assert sorted(cache) == sorted(stored)
        assert len(cache) == len(stored)
        for id_, one in stored.items():
            found = cache.features(id_)
            assert torch.equal(cache[id_], one.embeddings)
            assert cache[id_].dtype == one.embeddings.dtype
            assert all(torch.equal(a, b) for a, b in zip(ctc(found), ctc(one), strict=True))
            assert torch.equal(cache.features(id_, copy=1).embeddings, 2 * one.embeddings)
            assert (cache.num_embeddings(id_), cache.num_copies(id_)) == (len(one.embeddings), 2)
            assert cache.stamp(id_) == f"stamp {id_}"


def ctc(features: Features) -> tuple[Tensor, Tensor]:
    assert features.ctc_ids is not None
    assert features.ctc_log_probs is not None
    return features.ctc_ids, features.ctc_log_probs


def test_int8_keeps_each_frame_to_half_a_step(tmp_path: Path) -> None:
    frames = torch.randn(50, 16) * torch.logspace(-6, 3, 50)[:, None]
    frames[7] = 0.0
    with FeatureCacheWriter(tmp_path, SOURCE, Storage("int8")) as writer:
        add(writer, [("a", "1", frames)])
    error = (FeatureCache.open(tmp_path)["a"] - frames).abs()
    assert (error <= 0.51 * frames.abs().amax(dim=1, keepdim=True) / 127).all()


def test_what_a_file_takes_is_foretold(tmp_path: Path) -> None:
    for dtype in ("fp32", "bf16", "int8"):
        storage = Storage(dtype, ctc_top_k=8)
        with FeatureCacheWriter(tmp_path / dtype, SOURCE, storage) as writer, writer.shard(0) as shard:
            ids = torch.zeros(5000, 8, dtype=torch.int64)
            shard.add("a", "1", [Features(torch.zeros(1000, 2048), ids, ids.float())])  # 100 s
        (path,) = (tmp_path / dtype).glob("features-*")
        assert path.stat().st_size == pytest.approx(100 * bytes_per_second(storage, 2048, 10.0, 50.0), rel=1e-3)


def test_reading_copies_nothing(tmp_path: Path) -> None:
    fill(tmp_path, range(3), num_shards=1)
    cache = FeatureCache.open(tmp_path)
    assert cache["0"].data_ptr() == cache["0"].data_ptr()
    assert cache["0"].untyped_storage().data_ptr() == cache["1"].untyped_storage().data_ptr()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "features-00000-of-00001.safetensors") in maps.read_text()


def test_slices_of_one_batch_that_changes_afterwards(tmp_path: Path) -> None:
    batch = torch.randn(2, 5, 4, requires_grad=True)
    with FeatureCacheWriter(tmp_path, SOURCE) as writer, writer.shard(0) as shard:
        shard.add("a", "1", [Features(batch[0])])
        shard.add("b", "1", [Features(batch[1, :3])])
        with torch.no_grad():
            expected = batch[1, :3].clone()
            batch.zero_()  # the encoder may reuse its output
    assert torch.equal(FeatureCache.open(tmp_path)["b"], expected)


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")])
def test_worker_processes_read_for_themselves(tmp_path: Path, context: ForkContext | SpawnContext) -> None:
    fill(tmp_path, range(3))
    cache = FeatureCache.open(tmp_path)
    assert cache["0"].sum() == 0  # the parent holds an open file
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


def test_a_cache_that_is_not_on_this_machine(tmp_path: Path) -> None:
    """`memory://` is what fsspec brings along; the same bytes lie there as would lie in a folder."""
    url = f"memory://caches/{uuid.uuid4()}"
    assert not FeatureCache.exists(url)
    fill(url, range(10))
    fill(tmp_path, range(10))
    assert FeatureCache.exists(url)
    there = fsspec.filesystem("memory")
    found = {path.rpartition("/")[2]: there.cat_file(path) for path in there.ls(url, detail=False)}
    assert found == contents(tmp_path)
    cache = FeatureCache.open(url, expected_source=SOURCE)
    assert all(torch.equal(cache[str(number)], features(number)) for number in range(10))
    with FeatureCacheWriter(url, SOURCE, num_shards=4) as writer:
        assert writer.holds("3", "1-1")
        assert writer.store.free_bytes() is None
        add(writer, [("3", "2-2", features(7, length=0)), ("new", "1", features(8))])
    cache = FeatureCache.open(url)
    assert cache["3"].shape == (0, 4)
    assert torch.equal(cache["new"], features(8))
    with FeatureCacheWriter(url, {"other": 1}, overwrite=True):
        assert not FeatureCache.exists(url)


@pytest.mark.parametrize(("dtype", "row_bytes"), [("fp32", 16), ("bf16", 8), ("int8", 4 + 4)])
def test_embeddings_are_fetched_without_what_the_ctc_head_said(
    dtype: StorageType, row_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, embeddings = f"memory://caches/{uuid.uuid4()}", torch.randn(6, 4).to(torch.bfloat16)
    of_ctc = torch.ones(30, 2, dtype=torch.long), torch.zeros(30, 2)
    with FeatureCacheWriter(url, SOURCE, Storage(dtype, ctc_top_k=2)) as writer, writer.shard(0) as shard:
        shard.add("a", "1", [Features(embeddings, *of_ctc), Features(2 * embeddings, *of_ctc)])
    cache, fetched, read = FeatureCache.open(url), [0], RemoteStore.read

    def counting(store: RemoteStore, name: str, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return read(store, name, start, stop)

    monkeypatch.setattr(RemoteStore, "read", counting)
    found = cache.embeddings("a", copy=1)
    assert sum(fetched) == 6 * row_bytes
    torch.testing.assert_close(found.float(), 2 * embeddings.float(), rtol=0.0, atol=0.05)
    assert torch.equal(cache.features("a", copy=1).embeddings, found)


def test_places_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nonsense://x cannot be opened .*: give a folder"):
        FeatureCache.open("nonsense://x")
    with pytest.raises(DataError, match=r"is no feature cache .*run 'asr-doge features'"):
        FeatureCache.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file cannot be written to"):
        FeatureCacheWriter(tmp_path / "file", SOURCE)
    with pytest.raises(DataError, match="file cannot be read"):
        FeatureCache.open(tmp_path / "file")


def test_require_fresh_names_missing_and_stale(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"sound")
    here, moved = (Utterance(id_, tmp_path / f"{id_}.wav", "x", "x", 1.0) for id_ in ("a", "moved"))
    folder = tmp_path / "cache"
    with FeatureCacheWriter(folder, SOURCE) as writer:
        add(writer, [("a", fingerprint(audio), features(1)), ("moved", "5-5", features(2))])
    cache = FeatureCache.open(folder)
    cache.require_fresh([here, moved])
    with pytest.raises(DataError, match=r"lacks 1 of 2 utterances .the first: 'b'"):
        cache.require_fresh([here, Utterance("b", audio, "x", "x", 1.0)])
    os.utime(audio, ns=(1, 1))
    cache.require_fresh([here, moved])  # as it is after `cp -r`
    audio.write_bytes(b"other")
    with pytest.raises(DataError, match=r"is older than the recordings of 1 of 2 utterances"):
        cache.require_fresh([here, moved])
    with pytest.raises(DataError, match="lacks utterance 'b'"):
        _ = cache["b"]


@given(st.floats(0, 1e9), st.floats(1, 1e5))
def test_as_many_files_as_the_audio_needs(seconds: float, shard_seconds: float) -> None:
    count = shard_count(seconds, shard_seconds)
    assert count.bit_count() == 1
    assert count * shard_seconds >= seconds
    assert count == 1 or count / 2 * shard_seconds < seconds


def test_utterances_spread_over_the_files() -> None:
    counts = [0] * 16
    for number in range(1600):
        counts[shard_of(f"speaker-{number:05d}", 16)] += 1
    assert 50 < min(counts) < max(counts) < 200


def test_misuse_is_refused(tmp_path: Path) -> None:
    with FeatureCacheWriter(tmp_path, SOURCE) as writer, writer.shard(0) as shard:
        with pytest.raises(ValueError, match=r"expected embeddings \[T', D\]"):
            shard.add("a", "1", [Features(torch.zeros(1, 2, 3))])
        with pytest.raises(ValueError, match="CTC label"):
            shard.add("a", "1", [Features(features(1), torch.full((3, 1), 40_000), features(1)[:, :1])])
    with pytest.raises(ValueError, match="closed"), writer.shard(0):
        pass
