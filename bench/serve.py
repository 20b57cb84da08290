"""The server under load: many clients, live streams, a long stream, and bad clients among good ones.

Promises: it starts `asr-doge serve` as a user does, and speaks to it over HTTP and WebSocket as OpenAI's clients do.
Recordings are digit strings of real speakers (Free Spoken Digit Dataset), or those of a manifest. Measured are:

- files: clips a second with one client and with several, how many there could be if all processors did nothing else,
  and whether each text is `asr-doge transcribe`'s;
- live: the time from the end of speech, where the client commits, to the final text, against the number of streams that
  speak at their own pace;
- mixed: what good clients see while bad, slow and vanishing ones are at work, and the server's memory;
- long: memory and time of a long stream.

The clients run in this process, on the same machine, and take their part of it.

    python bench/serve.py --digits_dir ./fsdd --parts files live --output_json serve.json
"""

import argparse
import asyncio
import base64
import io
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from numpy.typing import NDArray
from openai import APIStatusError, AsyncOpenAI
from stream import digit_string
from websockets.asyncio.client import ClientConnection, connect

from asr_doge.audio import SAMPLE_RATE, add_noise
from asr_doge.audio.reading import read_audio
from asr_doge.data.digits import read_fsdd
from asr_doge.data.manifest import read_manifest
from asr_doge.text.scoring import score

BLOCK_SECONDS = 0.1
TRANSCRIPTION = "conversation.item.input_audio_transcription"
MODEL = "whisper-1"
"""An alias that every server has."""
PARTS = ("files", "live", "mixed", "long")
Waveform = NDArray[np.float32]
Report = dict[str, Any]


@dataclass(frozen=True)
class Spoken:
    """A recording, its words, and where speech ends in it, in seconds."""

    clip: Waveform
    words: str
    end: float


class Server:
    """The command, in a process of its own."""

    def __init__(self, model: str) -> None:
        self.model = model
        command = [
            sys.executable,
            "-m",
            "asr_doge",
            "serve",
            "--model",
            model,
            "--port",
            "0",
            "--max_requests",
            "64",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.address = ""
        while not self.address:
            line = self.process.stderr.readline()
            if not line:
                raise SystemExit("the server did not start")
            found = re.search(r"http://[\d.]+:\d+", line)
            self.address = found[0] if found else ""

    @property
    def megabytes(self) -> float:
        """Memory of the server, its decoding process and the forks of that; what several share counts once (Linux)."""
        one = psutil.Process(self.process.pid)
        held = 0
        for process in [one, *one.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # a fork that has ended meanwhile
                held += process.memory_full_info().pss
        return held / 1e6

    @property
    def processor_seconds(self) -> float:
        """Time of the processor that the server took; what decodes and cuts files comes on top."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def decoding_seconds(self) -> float:
        """Time of the processor that the process took that decodes and cuts files, with its forks that have ended."""
        return sum(sum(process.cpu_times()[:4]) for process in psutil.Process(self.process.pid).children())

    @property
    def client(self) -> AsyncOpenAI:
        """A client of OpenAI's."""
        return AsyncOpenAI(api_key="none", base_url=f"{self.address}/v1", max_retries=0, timeout=600)

    def session(self) -> Any:
        """A live session."""
        return connect(f"{self.address.replace('http', 'ws')}/v1/realtime?intent=transcription", max_queue=None)

    def close(self) -> None:
        """Stop it as Ctrl-C does."""
        self.process.terminate()
        self.process.wait(30)


def wav(waveform: Waveform) -> bytes:
    """A file in memory."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def by_command(model: str, clips: Sequence[Waveform], cut_at_pauses: bool = False) -> list[str]:
    """What `asr-doge transcribe` writes of each clip."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.wav" for number in range(len(clips))]
        for path, clip in zip(paths, clips, strict=True):
            path.write_bytes(wav(clip))
        command = [sys.executable, "-m", "asr_doge", "transcribe", "--model", model, "--output_dir", folder]
        command += ["--cut_at_pauses", str(cut_at_pauses).lower(), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True)
        return [path.with_suffix(".txt").read_text().strip() for path in paths]


async def transcribe_all(server: Server, clips: Sequence[Waveform], clients: int) -> tuple[float, list[str]]:
    """Seconds that all clips take, by so many clients, and the texts."""
    client = server.client
    free = asyncio.Semaphore(clients)

    async def one(clip: Waveform) -> str:
        async with free:
            return (await client.audio.transcriptions.create(file=("clip.wav", wav(clip)), model=MODEL)).text

    began = time.perf_counter()
    texts = await asyncio.gather(*map(one, clips))
    return time.perf_counter() - began, list(texts)


async def files(server: Server, clips: Sequence[Waveform], words: Sequence[str], clients: Sequence[int]) -> Report:
    """Throughput, and the texts beside those of the command line."""
    alone = by_command(server.model, clips)
    report: Report = {"wer_of_command_line": score(words, alone).wer, "clients": []}
    await transcribe_all(server, clips[:4], 4)
    audio = sum(map(len, clips)) / SAMPLE_RATE
    for number in clients:
        before, decoding_before = server.processor_seconds, server.decoding_seconds
        client_before = sum(psutil.Process().cpu_times()[:2])
        seconds, texts = await transcribe_all(server, clips, number)
        work, client_work = server.processor_seconds - before, sum(psutil.Process().cpu_times()[:2]) - client_before
        decoding = server.decoding_seconds - decoding_before
        row: Report = {
            "clients": number,
            "clips_per_s": round(len(clips) / seconds, 2),
            "audio_s_per_s": round(audio / seconds, 1),
            "cores_of_server": round(work / seconds, 2),
            "server_s_per_clip": round(work / len(clips), 3),
            "decoding_s_per_clip": round(decoding / len(clips), 3),
            "client_s_per_clip": round(client_work / len(clips), 3),
            "most_clips_per_s": round((psutil.cpu_count() or 1) * len(clips) / (work + decoding + client_work), 1),
            "texts_as_command_line": f"{sum(map(str.__eq__, texts, alone))} of {len(clips)}",
            "wer": score(words, texts).wer,
        }
        report["clients"].append(row)
        print(row, flush=True)
    return report


async def say(socket: ClientConnection, kind: str, **values: Any) -> None:
    """Send one event."""
    await socket.send(json.dumps({"type": kind} | values))


def append_text(samples: Waveform) -> str:
    """Samples as the protocol has them."""
    return base64.b64encode((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).decode()


async def set_up(socket: ClientConnection, detect: bool = False) -> None:
    """16 kHz; the client commits, or the server detects turns."""
    turns = {"type": "server_vad"} if detect else None
    audio = {"input": {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": turns}}
    await say(socket, "session.update", session={"type": "transcription", "audio": audio})


async def speak(server: Server, clips: Sequence[Waveform], delay: float) -> list[float]:
    """Speak clips at their own pace, one session; seconds from the end of each to its text."""
    behind = []
    async with server.session() as socket:
        await set_up(socket)
        await asyncio.sleep(delay)
        size = int(BLOCK_SECONDS * SAMPLE_RATE)
        for clip in clips:
            began = time.perf_counter()
            for start in range(0, len(clip), size):
                block = clip[start : start + size]
                end = (start + len(block)) / SAMPLE_RATE  # no block is there before its last sample was spoken
                await asyncio.sleep(max(0.0, end - (time.perf_counter() - began)))
                await say(socket, "input_audio_buffer.append", audio=append_text(block))
            committed = time.perf_counter()
            await say(socket, "input_audio_buffer.commit")
            while json.loads(await socket.recv())["type"] != f"{TRANSCRIPTION}.completed":
                pass
            behind.append(time.perf_counter() - committed)
    return behind


async def latencies(server: Server, clips: Sequence[Waveform], streams: int, turns: int) -> Report:
    """Of so many streams at once."""
    rng = random.Random(streams)
    chosen = [[rng.choice(clips) for _ in range(turns)] for _ in range(streams)]
    before = server.processor_seconds
    began = time.perf_counter()
    each = await asyncio.gather(*(speak(server, mine, rng.uniform(0, 3)) for mine in chosen))
    passed = time.perf_counter() - began
    values = 1000 * np.array([value for behind in each for value in behind])
    p50, p95, p99 = (round(float(np.percentile(values, share))) for share in (50, 95, 99))
    work = server.processor_seconds - before
    audio = sum(len(clip) for mine in chosen for clip in mine) / SAMPLE_RATE
    return {
        "streams": streams,
        "turns": len(values),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "cores_of_server": round(work / passed, 2),
        "processor_s_per_audio_s": round(work / audio, 3),
    }


async def long_stream(server: Server, clips: Sequence[Waveform], seconds: float, pace: float) -> list[Report]:
    """One session, with a commit for every tenth of it; memory, time and work of each.

    `pace` is seconds of audio a second; 0 sends as fast as is heard.
    """
    rows: list[Report] = []
    number, sent, start = 0, 0.0, time.perf_counter()
    async with server.session() as socket:
        await set_up(socket)
        for part in range(1, 11):
            began, before, sent_before = time.perf_counter(), server.processor_seconds, sent
            while sent < seconds * part / 10:
                clip = clips[number % len(clips)]
                number += 1
                for block in np.array_split(clip, max(len(clip) // SAMPLE_RATE, 1)):
                    sent += len(block) / SAMPLE_RATE
                    if pace:
                        await asyncio.sleep(max(0.0, sent / pace - (time.perf_counter() - start)))
                    await say(socket, "input_audio_buffer.append", audio=append_text(block))
            committed = time.perf_counter()
            await say(socket, "input_audio_buffer.commit")
            while (event := json.loads(await socket.recv()))["type"] != f"{TRANSCRIPTION}.completed":
                pass
            now = time.perf_counter()
            row: Report = {"audio_s": round(sent), "took_s": round(now - began, 1)}
            row["commit_to_text_ms"] = round(1000 * (now - committed))
            row["processor_s_per_audio_s"] = round((server.processor_seconds - before) / (sent - sent_before), 3)
            rows.append(row | {"mb": round(server.megabytes), "words": len(event["transcript"].split())})
            print(rows[-1], flush=True)
    return rows


async def mixed(server: Server, clips: Sequence[Waveform], seconds: float) -> Report:
    """Good, bad, slow and vanishing clients for a time; what the good ones saw."""
    texts, live_texts = by_command(server.model, clips), by_command(server.model, clips, cut_at_pauses=True)
    await transcribe_all(server, clips[:8], 4)
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    before = server.megabytes
    held: list[float] = []

    async def good(rng: random.Random) -> None:
        while time.monotonic() < end:
            number = rng.randrange(len(clips))
            try:
                reply = await server.client.audio.transcriptions.create(file=("a.wav", wav(clips[number])), model=MODEL)
                seen["good: right text" if reply.text == texts[number] else "good: another text"] += 1
            except APIStatusError as error:
                seen[f"good: {error.status_code}"] += 1

    async def good_live(rng: random.Random) -> None:
        async with server.session() as socket:
            await set_up(socket)
            while time.monotonic() < end:
                number = rng.randrange(len(clips))
                await say(socket, "input_audio_buffer.append", audio=append_text(clips[number]))
                await say(socket, "input_audio_buffer.commit")
                while (event := json.loads(await socket.recv()))["type"] != f"{TRANSCRIPTION}.completed":
                    seen["good live: error"] += event["type"] in ("error", f"{TRANSCRIPTION}.failed")
                is_right = event["transcript"] == live_texts[number]
                seen["good live: right text" if is_right else "good live: another text"] += 1

    async def slow() -> None:
        """The form of a file, a little at a time."""
        body = (
            b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--X\r\n'
            b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav(clips[0]) + b"\r\n--X--\r\n"
        )
        host, port = server.address.removeprefix("http://").split(":")
        while time.monotonic() < end:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: multipart/form-data; boundary=X\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            for start in range(0, len(body), 20_000):
                writer.write(body[start : start + 20_000])
                await asyncio.sleep(0.5)
            status = (await reader.readline()).split()[1].decode()
            seen[f"slow: {status}"] += 1
            writer.close()

    async def bad(rng: random.Random) -> None:
        while time.monotonic() < end:
            content = rng.choice([b"", b"no sound", rng.randbytes(20_000), wav(clips[0])[:2000]])
            try:
                await server.client.audio.transcriptions.create(file=("a.wav", content), model=MODEL)
                seen["bad: 200"] += 1
            except APIStatusError as error:
                seen[f"bad: {error.status_code}"] += 1
            await asyncio.sleep(0.2)

    async def vanish(rng: random.Random) -> None:
        host, port = server.address.removeprefix("http://").split(":")
        while time.monotonic() < end:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: multipart/form-data; boundary=X\r\nContent-Length: 90000\r\n\r\n"
                b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            )
            await asyncio.sleep(rng.uniform(0, 3))
            writer.transport.abort()
            seen["vanished"] += 1
            socket = await server.session()
            await set_up(socket)
            await say(socket, "input_audio_buffer.append", audio=append_text(rng.choice(clips)))
            socket.transport.abort()

    async def silent() -> None:
        async with server.session() as socket:
            await set_up(socket, detect=True)
            block = append_text(np.random.default_rng(0).normal(0, 0.001, SAMPLE_RATE).astype(np.float32))
            while time.monotonic() < end:
                await say(socket, "input_audio_buffer.append", audio=block)
                await asyncio.sleep(1)
            await say(socket, "input_audio_buffer.commit")
            while (event := json.loads(await socket.recv()))["type"] != f"{TRANSCRIPTION}.completed":
                seen["words in silence"] += len(event.get("delta", "").split())
            seen["words in silence"] += len(event["transcript"].split())

    async def watch() -> None:
        while time.monotonic() < end:
            held.append(server.megabytes)
            await asyncio.sleep(1)

    rngs = [random.Random(number) for number in range(9)]
    others = (*map(bad, rngs[4:6]), *map(vanish, rngs[6:8]), slow(), silent(), watch())
    await asyncio.gather(*map(good, rngs[:4]), good_live(rngs[8]), *others)
    await asyncio.sleep(2)
    tenths = [round(float(np.median(part))) for part in np.array_split(held, 10)]
    memory = {"before_mb": round(before), "median_mb_of_tenths": tenths, "peak_mb": round(max(held))}
    memory["after_mb"] = round(server.megabytes)
    return {"seconds": seconds, "seen": dict(sorted(seen.items())), "memory": memory}


async def measure(server: Server, options: argparse.Namespace, spoken: list[Spoken]) -> Report:
    """The parts that are wanted, printed as they come."""
    clips = [one.clip for one in spoken]
    report: Report = {}
    if "files" in options.parts:
        report["files"] = await files(server, clips, [one.words for one in spoken], options.clients)
    if "live" in options.parts:
        report["live"] = []
        until_end = [one.clip[: round(one.end * SAMPLE_RATE)] for one in spoken]
        for streams in options.streams:
            report["live"].append(await latencies(server, until_end, streams, options.turns))
            print(report["live"][-1], flush=True)
    if "mixed" in options.parts:
        report["mixed"] = await mixed(server, clips, options.mixed_seconds)
        print(json.dumps(report["mixed"]), flush=True)
    if "long" in options.parts:
        report["long_pace"] = options.long_pace
        report["long"] = await long_stream(server, clips, options.long_seconds, options.long_pace)
    return report


def digit_strings(folder: Path, count: int, snr: float | None = None) -> list[Spoken]:
    """Of all speakers in turn, with white noise so many dB below them."""
    rng = np.random.default_rng(0)
    speakers = list(read_fsdd(folder, takes="test").values())
    made = [digit_string(speakers[number % len(speakers)], rng) for number in range(count)]
    noisy = [clip if snr is None else add_noise(clip, snr, rng) for clip, _, _ in made]
    return [Spoken(clip, " ".join(said), ends[-1]) for clip, (_, said, ends) in zip(noisy, made, strict=True)]


def of_manifest(path: Path, count: int) -> list[Spoken]:
    """Its first recordings, each taken to end with its last sample."""
    clips = [(read_audio(one.audio_path), one.text) for one in list(read_manifest(path))[:count]]
    return [Spoken(clip, text, len(clip) / SAMPLE_RATE) for clip, text in clips]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--digits_dir", type=Path, help="Free Spoken Digit Dataset")
    source.add_argument("--manifest", type=Path, help="recordings to take instead of digit strings")
    parser.add_argument("--snr", type=float, help="white noise in the digit strings, in dB below speech; default, none")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure")
    parser.add_argument("--clips", type=int, default=96, help="recordings")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], help="of files, at once")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16], help="live streams at once")
    parser.add_argument("--turns", type=int, default=12, help="turns of each stream")
    parser.add_argument("--long_seconds", type=float, default=3600, help="audio of the long stream")
    parser.add_argument("--long_pace", type=float, default=0, help="its audio a second; 0 for as fast as is heard")
    parser.add_argument("--mixed_seconds", type=float, default=600, help="time of the mixed load")
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    if options.digits_dir:
        spoken = digit_strings(options.digits_dir, options.clips, options.snr)
    else:
        spoken = of_manifest(options.manifest, options.clips)
    load_before = psutil.getloadavg()
    server = Server(options.model)
    try:
        report = asyncio.run(measure(server, options, spoken))
    finally:
        server.close()
    about = {
        "model": options.model,
        "snr": options.snr,
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "date": str(date.today()),
    }
    report = about | report | {"load_before": load_before, "load_after": psutil.getloadavg()}
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
