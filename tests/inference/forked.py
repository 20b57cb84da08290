"""A program for `test_forking.py`: transcribe, then in processes that come of this one; prints JSON, a text a way.

Threads of libraries are as a user has them: several, where the machine has several cores.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import asr_doge
from asr_doge.audio import read_audio
from asr_doge.audio.voice_activity import VoiceActivityDetector, has_voice
from asr_doge.inference.transcription import Transcriber

TIMEOUT_SECONDS = 200
kept: Transcriber | None = None


def say(path: str) -> str:
    """The text by the transcriber that the process has inherited, or by one that it loads."""
    signal.alarm(TIMEOUT_SECONDS)
    return (kept or asr_doge.load("nano", device="cpu")).transcribe(path).text


def load_and_say(path: str) -> str:
    signal.alarm(TIMEOUT_SECONDS)
    waveform = read_audio(path)
    assert has_voice(waveform)
    assert any(VoiceActivityDetector().feed(waveform))
    return asr_doge.load("nano", device="cpu", quantization="int8").transcribe(path).text


def say_in_child(path: str) -> str:
    """By a process that a forked one forks, after it has computed."""
    assert has_voice(read_audio(path))
    return forked(lambda: say(path))


def forked(function: Callable[[], str]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_SECONDS)
        os.write(write, function().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if code == 0 else f"exit code {code}"


def in_pool(method: str, path: str) -> str:
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply(say, (path,))


def in_executor(method: str, path: str) -> str:
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as executor:
        return executor.submit(say, path).result()


def main(path: str) -> dict[str, str]:
    global kept
    torch.set_num_threads(2)  # even where there is but one core
    kept = asr_doge.load("nano", device="cpu")
    texts = {"here": say(path)}
    signal.alarm(0)
    texts["os.fork"] = forked(lambda: say(path))
    texts["os.fork, loaded there"] = forked(lambda: load_and_say(path))
    texts["os.fork twice"] = forked(lambda: say_in_child(path))
    texts["multiprocessing, fork"] = in_pool("fork", path)
    texts["concurrent.futures, fork"] = in_executor("fork", path)
    texts["multiprocessing, spawn"] = in_pool("spawn", path)
    texts["here again"] = say(path)
    signal.alarm(0)
    return texts


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(sys.argv[1])))
