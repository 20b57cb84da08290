"""The server under load: many clients, live streams, a long stream, and bad clients among good ones.

Promises: it starts `asr-doge serve` as a user does, and speaks to it over HTTP and WebSocket as OpenAI's clients do.
Recordings are digit strings of real speakers (Free Spoken Digit Dataset). Measured are: files transcribed by one client
and by many, and whether each text is the command line's; the time from a commit to its text against the number of live
streams that speak at their own pace; memory and time of a long stream; and what good clients see while bad, slow and
vanishing ones are at work. The clients run in this process, on the same machine, and take their part of it.

    python bench/serve.py --digits_dir ./fsdd --output_json serve.json
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
import time
from collections import Counter
from collections.abc import Sequence
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

from asr_doge.audio import SAMPLE_RATE
from asr_doge.data.digits import read_fsdd
from asr_doge.inference.transcription import load
from asr_doge.text.scoring import score

BLOCK_SECONDS = 0.1
TRANSCRIPTION = "conversation.item.input_audio_transcription"
Waveform = NDArray[np.float32]
Report = dict[str, Any]


class Server:
    """The command, in a process of its own."""

    def __init__(self, model: str) -> None:
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
        """Memory of the server and its decoding process."""
        one = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [one, *one.children(recursive=True)]) / 1e6

    @property
    def processor_seconds(self) -> float:
        """Time of the processor that the server took; what decodes files comes on top."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

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


async def throughput(server: Server, clips: Sequence[Waveform], clients: int) -> tuple[float, list[str]]:
    """Seconds that all clips take, by so many clients, and the texts."""
    client = server.client
    free = asyncio.Semaphore(clients)

    async def one(clip: Waveform) -> str:
        async with free:
            return (await client.audio.transcriptions.create(file=("clip.wav", wav(clip)), model="nano")).text

    began = time.perf_counter()
    texts = await asyncio.gather(*map(one, clips))
    return time.perf_counter() - began, list(texts)


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


async def live(server: Server, clips: Sequence[Waveform], delay: float) -> list[float]:
    """Speak clips at their own pace, one session; seconds from each commit to its text."""
    behind = []
    async with server.session() as socket:
        await set_up(socket)
        await asyncio.sleep(delay)
        size = int(BLOCK_SECONDS * SAMPLE_RATE)
        for clip in clips:
            began = time.perf_counter()
            for start in range(0, len(clip), size):
                await asyncio.sleep(max(0.0, start / SAMPLE_RATE - (time.perf_counter() - began)))
                await say(socket, "input_audio_buffer.append", audio=append_text(clip[start : start + size]))
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
    each = await asyncio.gather(*(live(server, mine, rng.uniform(0, 3)) for mine in chosen))
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
        "cores": round(work / passed, 2),
        "processor_s_per_audio_s": round(work / audio, 3),
    }


async def long_stream(server: Server, clips: Sequence[Waveform], seconds: float) -> list[Report]:
    """One session as fast as it is heard, with a commit for every tenth of it; memory, time and work of each."""
    rows: list[Report] = []
    number = 0
    async with server.session() as socket:
        await set_up(socket)
        for _ in range(10):
            sent, began, before = 0.0, time.perf_counter(), server.processor_seconds
            while sent < seconds / 10:
                clip = clips[number % len(clips)]
                number += 1
                await say(socket, "input_audio_buffer.append", audio=append_text(clip))
                sent += len(clip) / SAMPLE_RATE
            await say(socket, "input_audio_buffer.commit")
            while (event := json.loads(await socket.recv()))["type"] != f"{TRANSCRIPTION}.completed":
                pass
            took, words = time.perf_counter() - began, len(event["transcript"].split())
            row: Report = {"audio_s": round(sent), "took_s": round(took, 1)}
            row["processor_s_per_audio_s"] = round((server.processor_seconds - before) / sent, 3)
            rows.append(row | {"mb": round(server.megabytes), "words": words})
            print(rows[-1], flush=True)
    return rows


async def mixed(server: Server, clips: Sequence[Waveform], texts: Sequence[str], seconds: float) -> Report:
    """Good, bad, slow and vanishing clients for a time; what the good ones saw."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    before = server.megabytes
    peak = before

    async def good(rng: random.Random) -> None:
        while time.monotonic() < end:
            number = rng.randrange(len(clips))
            try:
                reply = await server.client.audio.transcriptions.create(
                    file=("a.wav", wav(clips[number])), model="nano"
                )
                seen["good: right text" if reply.text == texts[number] else "good: another text"] += 1
            except APIStatusError as error:
                seen[f"good: {error.status_code}"] += 1

    async def bad(rng: random.Random) -> None:
        while time.monotonic() < end:
            content = rng.choice([b"", b"no sound", rng.randbytes(20_000), wav(clips[0])[:2000]])
            try:
                await server.client.audio.transcriptions.create(file=("a.wav", content), model="nano")
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
        nonlocal peak
        while time.monotonic() < end:
            peak = max(peak, server.megabytes)
            await asyncio.sleep(1)

    rngs = [random.Random(number) for number in range(8)]
    await asyncio.gather(*map(good, rngs[:4]), *map(bad, rngs[4:6]), *map(vanish, rngs[6:]), silent(), watch())
    await asyncio.sleep(2)
    memory = {"before_mb": round(before), "peak_mb": round(peak), "after_mb": round(server.megabytes)}
    return {"seconds": seconds, "seen": dict(sorted(seen.items())), "memory": memory}


async def measure(server: Server, options: argparse.Namespace, clips: list[Waveform], words: list[str]) -> Report:
    """Everything, and print it as it comes."""
    report: Report = {}
    transcriber = load(options.model, device="cpu")
    alone = [transcriber.transcribe(clip).text for clip in clips]
    del transcriber
    await throughput(server, clips[:4], 1)
    for clients in (1, 16):
        before = server.processor_seconds
        seconds, texts = await throughput(server, clips, clients)
        work = server.processor_seconds - before
        audio = sum(map(len, clips)) / SAMPLE_RATE
        row: Report = {"clips_per_s": round(len(clips) / seconds, 2), "audio_s_per_s": round(audio / seconds, 1)}
        same = sum(a == b for a, b in zip(texts, alone, strict=True))
        row["processor_s_per_clip"] = round(work / len(clips), 3)
        row |= {"texts_as_alone": f"{same} of {len(clips)}", "wer": score(words, texts).wer}
        report[f"{clients} clients"] = row
        print(f"{clients} clients: {row}", flush=True)
    report["wer_of_command_line"] = score(words, alone).wer
    report["live"] = []
    for streams in options.streams:
        row = await latencies(server, clips, streams, options.turns)
        report["live"].append(row)
        print(row, flush=True)
    report["mixed"] = await mixed(server, clips, alone, options.mixed_seconds)
    print(json.dumps(report["mixed"]), flush=True)
    report["long_stream"] = await long_stream(server, clips, options.long_seconds)
    return report


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits_dir", type=Path, required=True, help="Free Spoken Digit Dataset")
    parser.add_argument("--model", default="nano", help="checkpoint")
    parser.add_argument("--clips", type=int, default=96, help="digit strings")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16], help="live streams at once")
    parser.add_argument("--turns", type=int, default=12, help="turns of each stream")
    parser.add_argument("--long_seconds", type=float, default=3600, help="audio of the long stream")
    parser.add_argument("--mixed_seconds", type=float, default=600, help="time of the mixed load")
    parser.add_argument("--output_json", type=Path, help="report to write")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    speakers = list(read_fsdd(options.digits_dir, takes="test").values())
    made = [digit_string(speakers[number % len(speakers)], rng) for number in range(options.clips)]
    clips, words = [clip for clip, _, _ in made], [" ".join(said) for _, said, _ in made]
    load_before = psutil.getloadavg()
    server = Server(options.model)
    try:
        report = asyncio.run(measure(server, options, clips, words))
    finally:
        server.close()
    report |= {
        "machine": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "date": str(date.today()),
    }
    report |= {"load_before": load_before, "load_after": psutil.getloadavg()}
    print(json.dumps({key: report[key] for key in ("wer_of_command_line", "load_before", "load_after")}))
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
