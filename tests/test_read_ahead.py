"""An iterator that is read ahead gives what it gives anyway, and holds up nobody who leaves."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_doge.read_ahead import read_ahead


class FaultError(Exception):
    """Of an iterator."""


def numbers(count: int, fault: int | None, threads: set[int]) -> Iterator[int]:
    for number in range(count):
        threads.add(threading.get_ident())
        if number == fault:
            raise FaultError(number)
        yield number


def collect(items: Iterator[int], into: list[int]) -> None:
    for item in items:
        into.append(item)  # one by one, as an error may follow


@given(count=st.integers(0, 6), fault=st.integers(0, 6))
def test_items_and_errors_are_the_iterators(count: int, fault: int) -> None:
    threads: set[int] = set()
    got: list[int] = []
    if fault < count:
        with pytest.raises(FaultError, match=str(fault)):
            collect(read_ahead(numbers(count, fault, threads)), got)
    else:
        collect(read_ahead(numbers(count, fault, threads)), got)
    assert got == list(range(min(count, fault)))
    assert threading.get_ident() not in threads


def test_one_item_is_made_ahead_and_no_more() -> None:
    begun = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert begun[1].wait(60)  # though nobody has asked for it
    assert not begun[2].is_set()
    assert next(ahead) == 1
    assert begun[2].wait(60)
    assert not begun[3].is_set()
    ahead.close()  # type: ignore[attr-defined]  # it is a generator


def test_who_leaves_stops_the_work() -> None:
    wanted, others = threading.Event(), threading.enumerate()

    def endless() -> Iterator[int]:
        while not wanted.is_set():
            yield 0

    for _ in read_ahead(endless(), wanted.set):
        break
    assert wanted.is_set()
    for thread in threading.enumerate():
        if thread.name == "read-ahead" and thread not in others:
            thread.join(60)
            assert not thread.is_alive()


def test_an_iterator_that_waits_for_ever_is_left_behind() -> None:
    never = threading.Event()

    def stuck() -> Iterator[int]:
        yield 0
        never.wait()

    ahead = read_ahead(stuck())
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]  # it is a generator
    never.set()
