"""Writers of a feature cache, one after another or at once, lose nothing of each other and mix nothing."""

import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.data.feature_cache import FeatureCache
from asr_doge.data.feature_cache_writer import FeatureCacheWriter
from asr_doge.data.feature_folder import shard_of
from asr_doge.data.feature_shards import Features, Storage
from asr_doge.data.sharding import Shard
from asr_doge.data.stores import LocalStore
from asr_doge.errors import DataError
from tests.data.feature_caches import SOURCE, add, contents, features, fill


def test_parts_by_several_writers_are_the_whole_byte_for_byte(tmp_path: Path) -> None:
    wanted = [(str(number), "1-1", features(number)) for number in range(40)]
    with FeatureCacheWriter(tmp_path / "whole", SOURCE, num_shards=8) as writer:
        add(writer, wanted)
    writers = [FeatureCacheWriter(tmp_path / "parts", SOURCE, num_shards=8, part=Shard(part, 3)) for part in (1, 2, 3)]
    for writer in writers:  # all of them at once, in one folder
        for number in range(8):
            mine = [item for item in wanted if writer.shard_of(item[0]) == number]
            with writer.shard(number) as shard:
                for id_, stamp, tensor in mine:
                    shard.add(id_, stamp, [Features(tensor)])
        writer.close()
    assert len(contents(tmp_path / "whole")) > 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_order_and_interruptions_leave_no_trace(tmp_path: Path) -> None:
    fill(tmp_path / "at once", range(20))
    wanted = [(str(number), "1-1", features(number)) for number in range(20)]
    for some in (wanted[13:], wanted[:7], wanted[7:13]):
        with FeatureCacheWriter(tmp_path / "bit by bit", SOURCE, num_shards=4) as writer:
            add(writer, some)
    assert contents(tmp_path / "bit by bit") == contents(tmp_path / "at once")


def test_a_killed_writer_leaves_whole_files_only(tmp_path: Path) -> None:
    fill(tmp_path, range(20))
    before = contents(tmp_path)
    victim = "features-00002-of-00004.safetensors"
    (tmp_path / victim).rename(tmp_path / f"{victim}.99.tmp")  # killed while it was written
    lost = [str(number) for number in range(20) if shard_of(str(number), 4) == 2]
    assert lost
    assert set(FeatureCache.open(tmp_path)) == {str(number) for number in range(20)} - set(lost)
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=4) as writer:
        assert [str(number) for number in range(20) if not writer.holds(str(number), "1-1")] == lost
        add(writer, ((id_, "1-1", features(float(id_))) for id_ in lost))
    assert contents(tmp_path) == before  # and the leftover is gone


@pytest.mark.parametrize("remaining", [0, 5, 50, -1, None])
def test_a_file_that_lost_its_tail(tmp_path: Path, remaining: int | None) -> None:
    fill(tmp_path, range(20))
    before = contents(tmp_path)
    shard = tmp_path / "features-00001-of-00004.safetensors"
    size = shard.stat().st_size
    if remaining is None:
        shard.write_bytes(os.urandom(size))
    else:
        os.truncate(shard, remaining if remaining >= 0 else size + remaining)
    with pytest.raises(DataError, match=r"features-00001-of-00004.safetensors is .*; run 'asr-doge features' again"):
        FeatureCache.open(tmp_path)
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=4) as writer:
        missing = [str(number) for number in range(20) if not writer.holds(str(number), "1-1")]
        assert missing == [str(number) for number in range(20) if shard_of(str(number), 4) == 1]
        add(writer, ((id_, "1-1", features(float(id_))) for id_ in missing))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("part", [Shard(2, 2), Shard(1, 1)])
def test_opening_removes_nothing_that_another_writer_has_just_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Shard, read_first: bool
) -> None:
    """Between the listing of the folder and the reading of the file, or between the two reads of its header."""
    victim = "features-00000-of-00004.safetensors"  # of the first of two parts
    first = [str(number) for number in range(40) if shard_of(str(number), 4) == 0]
    fill(tmp_path, first[:2])
    before = (tmp_path / victim).read_bytes()
    with TemporaryDirectory() as elsewhere:
        fill(Path(elsewhere), first)
        after = (Path(elsewhere) / victim).read_bytes()
    assert len(after) > len(before)
    read = LocalStore.read
    reads = itertools.count()

    def interrupted(store: LocalStore, name: str, start: int, stop: int) -> bytes:
        content = b"" if not read_first else read(store, name, start, stop)
        if name == victim and next(reads) == 0:
            write_atomically(tmp_path / victim, after)
        return content or read(store, name, start, stop)

    monkeypatch.setattr(LocalStore, "read", interrupted)
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=4, part=part) as writer:
        assert part == Shard(2, 2) or all(writer.holds(id_, "1-1") for id_ in first)
    assert (tmp_path / victim).read_bytes() == after
    assert set(FeatureCache.open(tmp_path)) == set(first)


def test_a_reader_opens_what_a_writer_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = "features-00000-of-00001.safetensors"
    fill(tmp_path, range(2), num_shards=1)
    fill(tmp_path / "more", range(9), num_shards=1)
    content = (tmp_path / "more" / victim).read_bytes()
    read, reads = LocalStore.read, itertools.count()

    def interrupted(store: LocalStore, name: str, start: int, stop: int) -> bytes:
        if next(reads) == 1:  # between the two reads of a header
            write_atomically(tmp_path / victim, content)
        return read(store, name, start, stop)

    monkeypatch.setattr(LocalStore, "read", interrupted)
    assert len(FeatureCache.open(tmp_path)) == 9


def test_a_reader_is_given_what_a_replaced_file_holds(tmp_path: Path) -> None:
    """Its rows lie elsewhere, so that the old places would give another utterance's features."""
    fill(tmp_path, ["b", "c"], num_shards=1)
    cache = FeatureCache.open(tmp_path)
    fill(tmp_path, ["a"], num_shards=1)  # "a" comes first in the file
    assert torch.equal(cache["b"], features(0))
    assert torch.equal(cache["c"], features(1))
    cache = FeatureCache.open(tmp_path)
    with FeatureCacheWriter(tmp_path, {**SOURCE, "fingerprint": "cd34"}, overwrite=True) as writer:
        add(writer, [("b", "1-1", features(7))])
    with pytest.raises(DataError, match="replaced by features of another encoder"):
        _ = cache["b"]


def test_two_writers_of_one_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """One of all files and one of their first half, which no lock keeps apart, both opened on the empty folder."""
    with FeatureCacheWriter(tmp_path, SOURCE) as whole, FeatureCacheWriter(tmp_path, SOURCE, part=Shard(1, 2)) as half:
        for writer, id_ in ((half, "a"), (whole, "b"), (half, "c")):
            add(writer, [(id_, "1-1", features(1))])
        assert sorted(FeatureCache.open(tmp_path)) == ["a", "b", "c"]
    with FeatureCacheWriter(tmp_path / "new", SOURCE) as whole:
        with FeatureCacheWriter(tmp_path / "new", SOURCE, Storage("bf16"), part=Shard(1, 2)) as half:
            add(half, [("a", "1-1", features(1))])
        with pytest.raises(DataError, match=r"filled by another process too.*--dtype bf16, not fp32.*stop one"):
            add(whole, [("b", "1-1", features(1))])
    assert sorted(FeatureCache.open(tmp_path / "new")) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_parts_files_are_not_for_this_one_to_remove(tmp_path: Path, overwrite: bool) -> None:
    fill(tmp_path, range(20))
    for name in ("features-00000-of-00004.safetensors", "features-00001-of-00004.safetensors"):
        os.truncate(tmp_path / name, 50)
    source = {**SOURCE, "fingerprint": "cd34"} if overwrite else SOURCE
    FeatureCacheWriter(tmp_path, source, num_shards=4, part=Shard(2, 2), overwrite=overwrite).close()
    left = {int(name[9:14]) for name in contents(tmp_path)}
    assert left == ({0, 2} if overwrite else {0, 2, 3})  # 1 was damaged and its own; 3 another encoder's, its own


def test_a_file_of_another_version_is_kept_unless_asked(tmp_path: Path) -> None:
    fill(tmp_path, ["x"], num_shards=1)
    (path,) = tmp_path.glob("features-*")
    path.write_bytes(path.read_bytes().replace(b"cache, version 2", b"cache, version 9"))
    with pytest.raises(DataError, match=r"holds a file that is of another version .*--overwrite"):
        FeatureCacheWriter(tmp_path, SOURCE)
    assert path.exists()
    FeatureCacheWriter(tmp_path, SOURCE, overwrite=True).close()
    assert not path.exists()


def test_stale_features_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, range(3), stamp="old")
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=4) as writer:
        assert not writer.holds("1", "new")
        assert not writer.holds("1", "old", copies=2)
        assert writer.holds("1", None)
        add(writer, [("1", "new", features(99, length=5))])
        assert writer.holds("1", "new")
    cache = FeatureCache.open(tmp_path)
    assert torch.equal(cache["1"], features(99, length=5))
    assert (cache.stamp("1"), cache.stamp("2")) == ("new", "old")


def test_a_corpus_that_outgrows_its_files(tmp_path: Path) -> None:
    """Old features stay where they are and are found; what is newer counts, wherever it is."""
    fill(tmp_path, range(10), stamp="old", num_shards=2)
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=8) as writer:
        assert all(writer.holds(str(number), "old") for number in range(10))
        add(writer, [("3", "new", features(33)), *((str(n), "new", features(n)) for n in range(10, 20))])
    for part in (1, 2, 3):  # each sees those older files that hold utterances of its own
        with FeatureCacheWriter(tmp_path, SOURCE, num_shards=2, part=Shard(part, 3)) as writer:
            assert writer.num_shards == 8
            mine = [n for n in range(20) if writer.shard_of(str(n)) is not None]
            assert all(writer.holds(str(n), "old" if n < 10 and n != 3 else "new") for n in mine)
    cache = FeatureCache.open(tmp_path)
    assert len(cache) == 20
    assert torch.equal(cache["3"], features(33))
    assert torch.equal(cache["4"], features(4))


def test_another_source_or_storage_is_never_mixed_in(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    (tmp_path / "notes.txt").write_text("not ours")
    other = {**SOURCE, "fingerprint": "cd34"}
    with pytest.raises(DataError, match=r"another encoder \(fingerprint 'ab12', not 'cd34'\): run 'asr-doge features'"):
        FeatureCache.open(tmp_path, expected_source=other)
    with pytest.raises(DataError, match=r"\(dtype None, not 'float16'\)"):
        FeatureCache.open(tmp_path, expected_source={**SOURCE, "dtype": "float16"})
    for _ in range(2):  # the second finds the folder as free as the first
        with pytest.raises(DataError, match=r"holds the features of 3 utterances by another encoder .* --overwrite"):
            FeatureCacheWriter(tmp_path, other)
    with pytest.raises(DataError, match=r"by another storage \(--dtype fp32, not bf16\): .* --overwrite"):
        FeatureCacheWriter(tmp_path, SOURCE, Storage("bf16"))
    assert len(FeatureCache.open(tmp_path, expected_source=SOURCE)) == 3
    with FeatureCacheWriter(tmp_path, other, overwrite=True) as writer:
        assert not writer.holds("0", "1-1")
    assert contents(tmp_path) == {}
    assert (tmp_path / "notes.txt").exists()


def test_files_of_two_encoders_put_into_one_folder_by_hand(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["x"], num_shards=1)
    with FeatureCacheWriter(tmp_path / "b", {**SOURCE, "fingerprint": "cd34"}, num_shards=2) as writer:
        add(writer, [("y", "1", features(1))])
    (path,) = (tmp_path / "b").glob("features-*")
    path.rename(tmp_path / "a" / path.name)
    with pytest.raises(DataError, match="mixes features of two encoders"):
        FeatureCache.open(tmp_path / "a")


def test_marks_of_unreadable_recordings_come_and_go(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    with FeatureCacheWriter(tmp_path, SOURCE, num_shards=4) as writer:
        add(writer, [], dict.fromkeys(("0", "1", "gone"), "no sound"))
        assert (writer.unreadable("gone"), writer.unreadable("never")) == ("no sound", None)
        assert not writer.holds("1", "1-1")
    assert set(FeatureCache.open(tmp_path).unreadable) == {"0", "1", "gone"}
    fill(tmp_path, range(2))
    cache = FeatureCache.open(tmp_path)
    assert (set(cache.unreadable), set(cache)) == ({"gone"}, {"0", "1"})


def test_error_in_the_run_keeps_what_was_computed(tmp_path: Path) -> None:
    def interrupted_run() -> None:
        with FeatureCacheWriter(tmp_path, SOURCE) as writer, writer.shard(0) as shard:
            shard.add("a", "1", [Features(features(1))])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert "a" in FeatureCache.open(tmp_path)


def test_second_writer_of_the_same_part_is_refused(tmp_path: Path) -> None:
    with FeatureCacheWriter(tmp_path, SOURCE, part=Shard(1, 2)):
        with pytest.raises(DataError, match="being written by another process"):
            FeatureCacheWriter(tmp_path, SOURCE, part=Shard(1, 2))
        FeatureCacheWriter(tmp_path, SOURCE, part=Shard(2, 2)).close()
    FeatureCacheWriter(tmp_path, SOURCE, part=Shard(1, 2)).close()
