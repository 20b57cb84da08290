"""Progress where standard error is a file: whole lines, and none for what is soon done."""

import fcntl
import io
import os
import signal
import struct
import sys
import termios
from threading import Event, Thread

import pytest
from tqdm import tqdm

from asr_doge.progress import progress_bar, progress_lines


def test_each_state_is_a_line_of_its_own() -> None:
    file = io.StringIO()
    with progress_lines(total=4, desc="features", unit="utt", seconds=0, file=file) as bar:
        for _ in range(4):
            bar.update()
    text = file.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[-1].startswith("features: 4 of 4 utt, 100 %, 00:")
    assert [line for line in lines if line.startswith("features: 2 of 4 utt, 50 %")]
    assert all(line.startswith("features: ") for line in lines)


def test_what_is_soon_done_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), desc="benchmark", unit="utt")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_messages_between_are_no_reason_for_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=3, desc="transcribing", unit="s") as bar:
        bar.update()
        tqdm.write("error: a.wav", file=sys.stderr)
        bar.set_postfix(loss=1.5)
        bar.update()
    assert capsys.readouterr().err == "error: a.wav\n"


def test_without_a_total_there_is_no_share() -> None:
    file = io.StringIO()
    assert list(progress_lines(iter("ab"), desc="split", unit="utt", seconds=0, file=file)) == ["a", "b"]
    assert file.getvalue().splitlines()[-1].startswith("split: 2 utt, 00:")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_process_forked_while_another_thread_looks_at_the_bars_has_bars() -> None:
    """As tqdm's monitor does every ten seconds. A process that waits for ever is ended by its alarm."""
    progress_bar(range(1)).close()
    is_locked, may_go = Event(), Event()

    def look() -> None:
        with tqdm.get_lock():
            is_locked.set()
            may_go.wait()

    thread = Thread(target=look)
    thread.start()
    is_locked.wait()
    child = os.fork()
    if not child:
        signal.alarm(30)
        with progress_bar(range(3)) as bar:
            os._exit(sum(bar))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    may_go.set()
    thread.join()
    assert code == 3
    assert list(progress_bar(range(3))) == [0, 1, 2]  # here as before


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress_bar(range(2), desc="features", ascii=True))
    assert "\r" in terminal.getvalue()
    assert "##" in terminal.getvalue()


def test_a_terminal_that_says_it_has_no_rows_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 60, 0, 0))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        list(progress_bar(range(2), desc="features", ascii=True))
        shown = os.read(ours, 10_000)
    os.close(ours)
    assert b"##" in shown
    assert all(len(line) <= 60 for line in shown.split())
