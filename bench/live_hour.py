"""An hour of live speech by the clock: whether a session's memory, steps or delay grow.

Promises: one session of `asr-doge serve` with `server_vad` is sent speech and pauses as a microphone would, a tenth of
a second at a time and never early; every ten minutes nobody speaks for a minute. Reported are, for each minute:

- memory of the server with its processes, and its processor time for a second of audio;
- time of one pass of the model, as the server counts it;
- delay: from the end of a turn, as the server states it (silence after the speech included), to its text;
- how late the client itself sent, on whose account some of the delay may be;

and for each ten minutes the word error rate (turns belong to the recording that their middle lies in), with the words
of turns in which nobody spoke. Digit strings are of real speakers, recordings of a manifest come in its order.

    python bench/live_hour.py --digits_dir ./fsdd --output_json hour.json
    python bench/live_hour.py --manifest ./speechocean762/test.jsonl --model english --output_json hour.json
"""

import argparse
import asyncio
import json
import platform
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serve import (
    BLOCK_SECONDS,
    TRANSCRIPTION,
    Report,
    Server,
    Spoken,
    Waveform,
    append_text,
    digit_strings,
    of_manifest,
    say,
    set_up,
)
from websockets.asyncio.client import ClientConnection

from asr_doge.audio import SAMPLE_RATE
from asr_doge.text.normalization import normalize_for_scoring
from asr_doge.text.scoring import score

REST_SECONDS, REST_EVERY = 60.0, 600.0
ROOM = 0.001
"""Amplitude of the noise in pauses."""


@dataclass(frozen=True)
class Place:
    """Where words were said, in seconds of the stream."""

    start: float
    end: float
    words: str


@dataclass(frozen=True)
class Turn:
    """What came back."""

    start: float
    end: float
    text: str
    arrived: float
    """Seconds since the stream began."""


@dataclass
class Stream:
    """What was sent and what came back, on one clock."""

    began: float
    places: list[Place] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    sent: float = 0.0
    latest_late: float = 0.0
    """Seconds that a block of this minute was sent late, at most."""

    @property
    def now(self) -> float:
        """Seconds since the stream began."""
        return time.perf_counter() - self.began


def pieces(spoken: Sequence[Spoken], seconds: float) -> Iterator[tuple[Waveform, str]]:
    """Speech and pauses, at least so many seconds; pauses have no words."""
    rng = np.random.default_rng(0)
    lasted, rested = 0.0, 0.0
    for one in cycle(spoken):
        pause = rng.uniform(0.5, 4.0)
        if lasted - rested > REST_EVERY - REST_SECONDS:
            pause, rested = REST_SECONDS, lasted + REST_SECONDS
        silence = rng.normal(0, ROOM, round(pause * SAMPLE_RATE)).astype(np.float32)
        for waveform, words in ((one.clip, one.words), (silence, "")):
            yield waveform, words
            lasted += len(waveform) / SAMPLE_RATE
        if lasted >= seconds:
            return


async def send(socket: ClientConnection, stream: Stream, spoken: Sequence[Spoken], seconds: float) -> None:
    """Speak, by the clock."""
    size = int(BLOCK_SECONDS * SAMPLE_RATE)
    for waveform, words in pieces(spoken, seconds):
        start = stream.sent
        for first in range(0, len(waveform), size):
            block = waveform[first : first + size]
            stream.sent += len(block) / SAMPLE_RATE
            await asyncio.sleep(max(0.0, stream.sent - stream.now))  # no block is there before its last sample
            stream.latest_late = max(stream.latest_late, stream.now - stream.sent)
            await say(socket, "input_audio_buffer.append", audio=append_text(block))
        if words:
            stream.places.append(Place(start, stream.sent, words))
    await say(socket, "input_audio_buffer.commit")


async def receive(socket: ClientConnection, stream: Stream, is_sent: asyncio.Event) -> None:
    """Turns, until all is sent and the last has its text."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    while not (is_sent.is_set() and ends and not starts):
        event = json.loads(await socket.recv())
        kind, item = event["type"], event.get("item_id", "")
        if kind == "input_audio_buffer.speech_started":
            starts[item] = event["audio_start_ms"] / 1000
        elif kind == "input_audio_buffer.speech_stopped":
            ends[item] = event["audio_end_ms"] / 1000
        elif kind == f"{TRANSCRIPTION}.completed":
            start = starts.pop(item, ends.get(item, stream.sent))
            stream.turns.append(Turn(start, ends.get(item, stream.sent), event["transcript"], stream.now))
        elif kind in ("error", f"{TRANSCRIPTION}.failed"):
            raise SystemExit(f"the server says {event}")


def passes(server: Server) -> tuple[float, float]:
    """Seconds that the model ran, and how many times."""
    text = urllib.request.urlopen(f"{server.address}/metrics").read().decode()
    names = ("asr_doge_model_seconds_total", "asr_doge_batch_chunks_count")
    found = [re.search(rf"^{name} (\S+)", text, re.MULTILINE) for name in names]
    seconds, count = (float(match[1]) if match else 0.0 for match in found)
    return seconds, count


async def watch(server: Server, stream: Stream, every: float, rows: list[Report]) -> None:
    """One row for each minute."""
    sent, work, turns = 0.0, server.processor_seconds, 0
    model, count = await asyncio.to_thread(passes, server)
    while True:
        await asyncio.sleep(max(0.0, (len(rows) + 1) * every - stream.now))
        model_now, count_now = await asyncio.to_thread(passes, server)
        work_now, sent_now, new = server.processor_seconds, stream.sent, stream.turns[turns:]
        delays = [1000 * (turn.arrived - turn.end) for turn in new]
        row: Report = {"until_s": round(stream.now), "mb": round(server.megabytes), "turns": len(new)}
        row["processor_s_per_audio_s"] = round((work_now - work) / max(sent_now - sent, 1e-9), 3)
        row["ms_a_pass"] = round(1000 * (model_now - model) / max(count_now - count, 1), 1)
        if delays:
            row |= {"delay_p50_ms": round(float(np.median(delays))), "delay_most_ms": round(max(delays))}
        rows.append(row | {"client_late_ms": round(1000 * stream.latest_late)})
        print(rows[-1], flush=True)
        sent, work, turns, model, count = sent_now, work_now, turns + len(new), model_now, count_now
        stream.latest_late = 0.0


def words_by_part(stream: Stream, every: float) -> list[Report]:
    """Error rates of the recordings that began in each part, and words where nobody spoke."""
    heard: list[list[str]] = [[] for _ in stream.places]
    nowhere: list[Turn] = []
    for turn in stream.turns:
        middle = (turn.start + turn.end) / 2
        inside = [number for number, place in enumerate(stream.places) if place.start <= middle < place.end]
        (heard[inside[0]].append(turn.text) if inside else nowhere.append(turn))
    parts: list[Report] = []
    for part in range(int(stream.places[-1].start // every) + 1):
        mine = [n for n, place in enumerate(stream.places) if place.start // every == part]
        said = [normalize_for_scoring(stream.places[number].words, rule="clean") for number in mine]
        got = [normalize_for_scoring(" ".join(heard[number]), rule="clean") for number in mine]
        idle = sum(len(turn.text.split()) for turn in nowhere if turn.start // every == part)
        parts.append({"recordings": len(mine), "wer": round(score(said, got).wer, 4), "words_in_pauses": idle})
    return parts


async def hour(server: Server, spoken: Sequence[Spoken], seconds: float) -> Report:
    """One session."""
    before, rows = server.megabytes, list[Report]()
    async with server.session() as socket:
        await set_up(socket, detect=True)
        stream, is_sent = Stream(time.perf_counter()), asyncio.Event()
        watching = asyncio.create_task(watch(server, stream, min(60.0, seconds / 4), rows))
        receiving = asyncio.create_task(receive(socket, stream, is_sent))
        await send(socket, stream, spoken, seconds)
        is_sent.set()
        await asyncio.wait({watching, receiving}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        watching.cancel()
        if receiving.done():  # else what came is reported without the last turn
            receiving.result()
    delays = [1000 * (turn.arrived - turn.end) for turn in stream.turns]
    p50, p95, p99 = (round(float(np.percentile(delays, share))) for share in (50, 95, 99))
    whole: dict[str, Any] = {"seconds": round(stream.sent), "turns": len(stream.turns), "before_mb": round(before)}
    whole |= {"delay_p50_ms": p50, "delay_p95_ms": p95, "delay_p99_ms": p99}
    return whole | {"ten_minutes": words_by_part(stream, 600.0), "minutes": rows}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--digits_dir", type=Path, help="Free Spoken Digit Dataset")
    source.add_argument("--manifest", type=Path, help="recordings to take instead of digit strings")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--clips", type=int, default=1000, help="recordings, in turn")
    parser.add_argument("--seconds", type=float, default=3600, help="of the stream")
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    load_before = psutil.getloadavg()
    if options.digits_dir:
        spoken = digit_strings(options.digits_dir, options.clips)
    else:
        spoken = of_manifest(options.manifest, options.clips)
    server = Server(options.model)
    try:
        report = asyncio.run(hour(server, spoken, options.seconds))
    finally:
        server.close()
    about = {"model": options.model, "machine": platform.machine(), "date": str(date.today())}
    report = about | report | {"load_before": load_before, "load_after": psutil.getloadavg()}
    print(json.dumps({name: value for name, value in report.items() if name != "minutes"}), flush=True)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
