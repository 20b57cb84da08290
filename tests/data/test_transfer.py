"""A file arrives whole or not at all, whatever the server does."""

import hashlib
import random
from pathlib import Path

import pytest

from asr_doge.data import transfer
from asr_doge.data.transfer import fetch
from asr_doge.errors import DataError
from tests.data.http_server import Behaviour, serve

CONTENT = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def bring(
    behaviour: Behaviour, target: Path, size: int | None = len(CONTENT), md5: str | None = MD5, timeout: float = 5
) -> None:
    with serve(behaviour) as address:
        fetch([f"{address}/a.tar.gz"], target, size, md5, timeout)


@pytest.mark.parametrize("supports_ranges", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_dropped_connection_is_continued(tmp_path: Path, supports_ranges: bool, size: int | None) -> None:
    """Without ranges too, as long as one connection lasts."""
    (tmp_path / "a.part").write_bytes(CONTENT[:100_000])
    behaviour = Behaviour(CONTENT, supports_ranges=supports_ranges, drop_after=90_000 if supports_ranges else None)
    bring(behaviour, tmp_path / "a", size)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    expected = ["bytes=100000-", "bytes=190000-", "bytes=280000-"] if supports_ranges else ["bytes=100000-"]
    assert behaviour.ranges_asked == expected


def test_a_server_that_drops_and_ignores_ranges_is_given_up(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT, supports_ranges=False, drop_after=100_000)
    with pytest.raises(DataError, match=r"it broke off after 100,000 of 300,000 bytes"):
        bring(behaviour, tmp_path / "a")
    assert behaviour.requests == 5
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]  # for the next run
    assert not (tmp_path / "a").exists()


def test_a_stalled_connection_is_made_anew(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT, stall_requests=2)
    bring(behaviour, tmp_path / "a", timeout=0.2)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert behaviour.ranges_asked == [None, "bytes=150000-", "bytes=225000-"]


@pytest.mark.parametrize("supports_ranges", [True, False])
def test_a_length_that_is_overstated_does_not_matter_where_the_size_is_known(
    tmp_path: Path, supports_ranges: bool
) -> None:
    bring(Behaviour(CONTENT, claimed_extra=1000, supports_ranges=supports_ranges), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("supports_ranges", [True, False])
def test_a_length_that_is_understated_is_never_taken_for_the_whole(tmp_path: Path, supports_ranges: bool) -> None:
    with pytest.raises(DataError, match=r"it broke off after 299,000 of 300,000 bytes"):
        bring(Behaviour(CONTENT, claimed_extra=-1000, supports_ranges=supports_ranges), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_misstated_length_is_found_by_the_checksum(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"MD5 [0-9a-f]{{32}}, not {MD5}"):
        bring(Behaviour(CONTENT, claimed_extra=-1000), tmp_path / "a", size=None)
    assert list(tmp_path.iterdir()) == []
    bring(Behaviour(CONTENT, claimed_extra=1000), tmp_path / "a", size=None)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_other_content_is_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match=rf"a.tar.gz: MD5 {hashlib.md5(wrong).hexdigest()}, not {MD5}"):
        bring(Behaviour(wrong), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    longer = CONTENT + b"more"
    bring(Behaviour(longer), tmp_path / "a")  # the first bytes are the file
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("left", [b"from another file" * 1000, CONTENT + b"too long", CONTENT])
def test_what_an_earlier_run_left_may_be_bad_or_whole(tmp_path: Path, left: bytes, size: int | None) -> None:
    (tmp_path / "a.part").write_bytes(left)
    bring(Behaviour(CONTENT), tmp_path / "a", size)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_file_of_unknown_size_and_checksum_is_what_the_server_says(tmp_path: Path) -> None:
    """As GitHub's archives are; what is in them is checked when they are unpacked."""
    (tmp_path / "a.part").write_bytes(CONTENT + b"too long")
    bring(Behaviour(CONTENT, drop_after=200_000), tmp_path / "a", None, None)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_mirrors_are_tried_in_turn_and_continue_each_other(tmp_path: Path) -> None:
    with (
        serve(Behaviour(CONTENT, status=404)) as missing,
        serve(Behaviour(CONTENT, status=503)) as busy,
        serve(Behaviour(CONTENT, supports_ranges=False, drop_after=1000)) as weak,
        serve(good := Behaviour(CONTENT)) as whole,
    ):
        urls = [f"{address}/a" for address in (missing, busy, weak, whole)]
        fetch(urls, tmp_path / "a", len(CONTENT), MD5, timeout=5)
        assert (tmp_path / "a").read_bytes() == CONTENT
        assert good.ranges_asked == ["bytes=1000-"]
        with pytest.raises(DataError) as caught:
            fetch(urls[:2], tmp_path / "b", len(CONTENT), MD5, timeout=5)
    message = str(caught.value)
    assert "HTTP 404" in message
    assert "HTTP 503" in message
    assert "\n" not in message


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/a", "no address"):
        with pytest.raises(DataError, match="a cannot be fetched") as caught:
            fetch([url], tmp_path / "a", None, None, timeout=1)
        assert "\n" not in str(caught.value)


def test_without_a_network_every_address_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names ending in .invalid are never found; waiting for them would be of no use."""
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_SECONDS", 1000.0)
    addresses = [f"http://{host}.invalid/a.tar.gz" for host in ("one", "two")]
    with pytest.raises(DataError, match=r"a cannot be fetched .one.invalid cannot be found, two.invalid .*network"):
        fetch(addresses, tmp_path / "a", None, None, timeout=5)


def test_a_file_that_is_there_is_checked_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    behaviour = Behaviour(CONTENT)
    bring(behaviour, tmp_path / "a")
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a is not the file that its publisher describes \(4 bytes, not 300,000\)"):
        bring(behaviour, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert behaviour.requests == 0


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    target = tmp_path / "a"
    (tmp_path / "a.part").symlink_to("/dev/full")
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    with pytest.raises(DataError, match=r"a.part cannot be written \(No space left on device\): free some space"):
        bring(Behaviour(CONTENT), target)
    assert not target.exists()
