"""Processor time and memory of transcription by part, for a model that is decoded by `fusion`.

    OMP_NUM_THREADS=1 python bench/parts.py --manifest ljspeech/test.jsonl --batch_size 8

Promises: the model and its calls are those of `asr-doge transcribe`; a part's time does not contain that of others.
Times are seconds of the processor per second of audio on the thread that works for the model, so that other work on the
machine counts little; `others` are the remaining threads, which read the recordings (and those of torch, with more than
one). Memory is that of the process, libraries and mapped files included (Linux). It says nothing of accuracy.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr_doge.data.manifest import read_manifest
from asr_doge.decoding.language_model_scorer import LanguageModelScorer
from asr_doge.inference.results import Transcription
from asr_doge.inference.transcription import Transcriber, load
from asr_doge.models import LoadedEncoder
from asr_doge.models.ctc_head import HeadedEncoder


class PartClock:
    """Adds up the processor time of functions, without that of timed functions within them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of a method as `part` from now on."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            start = time.thread_time()
            try:
                return method(*arguments, **options)
            finally:
                whole = time.thread_time() - start
                self.seconds[part] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="english", help="checkpoint (default: english)")
    parser.add_argument("--manifest", required=True, help="recordings to transcribe")
    parser.add_argument("--batch_size", type=int, default=8, help="chunks at once (default: 8)")
    arguments = parser.parse_args()
    memory = {"libraries": _memory("VmRSS")}
    transcriber = load(arguments.model, "cpu", batch_size=arguments.batch_size)
    transcriber.parallel = 1  # the clock is that of one thread
    memory["model"] = _memory("VmRSS")
    paths = [utterance.audio_path for utterance in read_manifest(arguments.manifest)]
    transcriber.transcribe(paths[0])  # imports what reading needs
    memory["one recording"] = _memory("VmRSS")
    clock = _watched(transcriber)
    process, thread = time.process_time(), time.thread_time()
    results = list(transcriber.transcribe_each(paths))
    process, thread = time.process_time() - process, time.thread_time() - thread
    seconds = sum(result.duration for result in results if isinstance(result, Transcription))
    parts = {**clock.seconds, "others": process - thread}
    print(json.dumps({"batch_size": arguments.batch_size, "audio_seconds": round(seconds, 1)}))
    print(json.dumps({part: round(spent / seconds, 4) for part, spent in {**parts, "all": process}.items()}))
    print(json.dumps({**memory, "highest": _memory("VmHWM")}))


def _watched(transcriber: Transcriber) -> PartClock:
    """A clock of the parts of this transcriber."""
    model, decoder, clock = transcriber.loaded.model, transcriber.recognizer.decoder, PartClock()
    clock.watch(LoadedEncoder, "input_features", "input features")
    clock.watch(model.encoder, "forward", "encoder")
    if isinstance(model.encoder, HeadedEncoder):
        clock.watch(model.encoder.ctc_head, "forward", "head")
    clock.watch(decoder, "decode", "search")
    clock.watch(decoder, "_tokenize", "tokenizer")
    clock.watch(LanguageModelScorer, "_extend", "states of texts")
    clock.watch(getattr(decoder, "language_model", model.language_model), "forward", "language model")
    clock.watch(transcriber.recognizer, "recognize", "guards and times")
    return clock


def _memory(field: str) -> int:
    """Megabytes (2^20 bytes) of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1024)


if __name__ == "__main__":
    main()
