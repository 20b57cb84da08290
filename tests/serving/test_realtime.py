"""`/v1/realtime` to OpenAI's own client: what was said as it is said, and what clients take for granted."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from openai import AsyncOpenAI
from scipy.signal import resample_poly
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asr_doge.audio import SAMPLE_RATE
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.inference.transcription import load
from asr_doge.serving import worker as worker_module
from asr_doge.serving.worker import ModelWorker
from tests.serving.conftest import KEY, Held, Running
from tests.waiting import until

Waveform = NDArray[np.float32]
Event = dict[str, Any]
TIMEOUT_SECONDS = 60.0
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def pcm(waveform: Waveform, rate: int) -> bytes:
    """As a client sends it, resampled by other means than the server's."""
    resampled = resample_poly(waveform.astype(np.float64), rate // 1000, SAMPLE_RATE // 1000)
    return (np.clip(resampled, -1, 1) * 32767).astype("<i2").tobytes()


@asynccontextmanager
async def session(
    served: Running, query: str = "intent=transcription", **options: Any
) -> AsyncIterator[ClientConnection]:
    address = f"{served.address.replace('http', 'ws')}/v1/realtime?{query}"
    async with connect(address, **options) as socket:
        assert (await event(socket))["type"] == "session.created"
        yield socket


async def event(socket: ClientConnection) -> Event:
    message: Event = json.loads(await asyncio.wait_for(socket.recv(), TIMEOUT_SECONDS))
    return message


async def send(socket: ClientConnection, kind: str, **values: Any) -> None:
    await socket.send(json.dumps({"type": kind} | values))


async def set_input(socket: ClientConnection, **settings: Any) -> Event:
    await send(socket, "session.update", session={"type": "transcription", "audio": {"input": settings}})
    answer = await event(socket)
    assert answer["type"] == "session.updated"
    told: Event = answer["session"]["audio"]["input"]
    return told


async def append(socket: ClientConnection, content: bytes, size: int = 9600) -> None:
    for start in range(0, len(content), size):
        await send(socket, "input_audio_buffer.append", audio=base64.b64encode(content[start : start + size]).decode())


async def until_completed(socket: ClientConnection, count: int = 1) -> list[Event]:
    events: list[Event] = []
    while sum(one["type"] == f"{TRANSCRIPTION}.completed" for one in events) < count:
        events.append(await event(socket))
        assert not events[-1]["type"].endswith(("error", ".failed")), events[-1]
    return events


def texts(events: Sequence[Event]) -> list[str]:
    return [one["transcript"] for one in events if one["type"] == f"{TRANSCRIPTION}.completed"]


def joined_deltas(events: Sequence[Event]) -> str:
    return "".join(one["delta"] for one in events if one["type"] == f"{TRANSCRIPTION}.delta")


@pytest.fixture(scope="module")
def heard(speech: Waveform) -> str:
    """The text of a file of the same sound, cut at pauses."""
    text = load("nano", device="cpu", decoding=DecodingConfig(cut_at_pauses=True)).transcribe(speech).text
    assert len(text.split()) >= 6
    return text


def test_a_file_cut_at_turns_has_the_text_of_a_session_with_the_same(
    served: Running, speech: Waveform, tmp_path: Path
) -> None:
    turns = {"type": "server_vad", "prefix_padding_ms": 200, "silence_duration_ms": 400}
    content = pcm(speech, SAMPLE_RATE)

    async def talk() -> str:
        async with session(served) as socket:
            await set_input(socket, format={"type": "audio/pcm", "rate": SAMPLE_RATE}, turn_detection=turns)
            await append(socket, content)
            return " ".join(texts(await until_completed(socket, 2)))

    soundfile.write(tmp_path / "same.wav", np.frombuffer(content, dtype="<i2"), SAMPLE_RATE)
    strategy: Any = turns
    reply = served.client().audio.transcriptions.create(
        file=tmp_path / "same.wav", model="nano", chunking_strategy=strategy
    )
    assert reply.text == asyncio.run(talk())
    assert len(reply.text.split()) >= 6


def test_openais_client_with_turns_of_the_server(served: Running, speech: Waveform, heard: str) -> None:
    async def talk() -> list[Any]:
        query = {"intent": "transcription"}
        async with (
            AsyncOpenAI(api_key=KEY, base_url=f"{served.address}/v1") as client,
            client.realtime.connect(extra_query=query) as connection,
        ):
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24000},
                            "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                            "turn_detection": {"type": "server_vad", "silence_duration_ms": 600},
                            "noise_reduction": {"type": "near_field"},
                        }
                    },
                }
            )
            content = pcm(speech, 24000)
            for start in range(0, len(content), 4800):
                audio = base64.b64encode(content[start : start + 4800]).decode()
                await connection.input_audio_buffer.append(audio=audio)
            events: list[Any] = []
            while sum(one.type == f"{TRANSCRIPTION}.completed" for one in events) < 2:
                events.append(await asyncio.wait_for(connection.recv(), TIMEOUT_SECONDS))
            return events

    events = asyncio.run(talk())
    kinds = [one.type for one in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert events[0].session.type == "transcription"
    assert events[1].session.audio.input.turn_detection.silence_duration_ms == 600
    for item in dict.fromkeys(one.item_id for one in events if one.type == "input_audio_buffer.committed"):
        mine = [one for one in events if getattr(one, "item_id", None) == item]
        order = [one.type for one in mine if not one.type.endswith((".delta", "tentative"))]
        assert order == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            f"{TRANSCRIPTION}.completed",
        ]
        assert mine[0].audio_start_ms >= 0
        assert "".join(one.delta for one in mine if one.type == f"{TRANSCRIPTION}.delta") == mine[-1].transcript
        assert mine[-1].usage.type == "duration"
        words = mine[-1].to_dict()["words"]
        assert [word["word"] for word in words] == mine[-1].transcript.split()
        assert all(word["start"] <= word["end"] and 0 < word["confidence"] <= 1 for word in words)
    spoken = [one.transcript for one in events if one.type == f"{TRANSCRIPTION}.completed"]
    assert " ".join(spoken) == heard


@pytest.mark.parametrize("rate", [24000, 16000])
def test_one_commit_gives_the_files_text(served: Running, speech: Waveform, heard: str, rate: int) -> None:
    async def talk() -> list[Event]:
        async with session(served) as socket:
            told = await set_input(socket, format={"type": "audio/pcm", "rate": rate}, turn_detection=None)
            assert told["format"] == {"type": "audio/pcm", "rate": rate}
            assert told["turn_detection"] is None
            await append(socket, pcm(speech, rate), size=4799)  # cuts samples in two
            await send(socket, "input_audio_buffer.commit")
            return await until_completed(socket)

    events = asyncio.run(talk())
    assert texts(events) == [heard]
    assert joined_deltas(events) == heard
    assert "input_audio_buffer.committed" in {one["type"] for one in events}


@pytest.mark.parametrize(("kind", "codec"), [("audio/pcmu", "pcm_mulaw"), ("audio/pcma", "pcm_alaw")])
def test_telephone_audio(served: Running, speech: Waveform, heard: str, kind: str, codec: str) -> None:
    """Encoded by FFmpeg; the narrow band may cost a word, but not many."""

    async def talk() -> list[Event]:
        async with session(served) as socket:
            assert (await set_input(socket, format={"type": kind}, turn_detection=None))["format"] == {"type": kind}
            await append(socket, telephone(speech, codec))
            await send(socket, "input_audio_buffer.commit")
            return await until_completed(socket)

    (text,) = texts(asyncio.run(talk()))
    said = heard.split()
    assert sum(a == b for a, b in zip(text.split(), said, strict=False)) >= len(said) - 1


def telephone(waveform: Waveform, codec: str) -> bytes:
    samples = np.frombuffer(pcm(waveform, 8000), dtype="<i2")
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def test_the_older_protocol_and_what_is_not_supported(served: Running, speech: Waveform, heard: str) -> None:
    async def talk() -> list[Event]:
        async with session(served, "model=gpt-4o-transcribe") as socket:
            old = {
                "input_audio_format": "pcm16",
                "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": "Zyntrix, Kubernetes"},
                "turn_detection": {"type": "semantic_vad", "eagerness": "high", "create_response": True},
                "input_audio_noise_reduction": {"type": "far_field"},
                "include": ["item.input_audio_transcription.logprobs"],
            }
            await send(socket, "transcription_session.update", session=old)
            answer = await event(socket)
            assert answer["type"] == "transcription_session.updated"
            told = answer["session"]["audio"]["input"]
            assert told["turn_detection"]["type"] == "server_vad"
            assert told["noise_reduction"] is None
            assert told["transcription"]["keywords"] == ["Zyntrix", "Kubernetes"]
            for odd in (
                {"format": {"type": "audio/opus"}},
                {"format": {"rate": 7}},
                {"transcription": {"model": "x"}},
                {"turn_detection": {"type": 5}},
            ):
                assert (await set_input(socket, **odd))["format"] == {"type": "audio/pcm", "rate": 24000}
            await append(socket, pcm(speech, 24000))
            return await until_completed(socket, 2)

    events = asyncio.run(talk())
    assert " ".join(texts(events)) == heard
    assert all(one["logprobs"] for one in events if one["type"] == f"{TRANSCRIPTION}.completed")


def test_clear_forgets_and_an_empty_commit_is_answered(served: Running, speech: Waveform) -> None:
    async def talk() -> list[Event]:
        async with session(served) as socket:
            await set_input(socket, turn_detection=None)
            await append(socket, pcm(speech, 24000)[:72000])
            await send(socket, "input_audio_buffer.clear")
            await send(socket, "input_audio_buffer.commit")
            return await until_completed(socket)

    events = asyncio.run(talk())
    assert texts(events) == [""]
    assert "input_audio_buffer.cleared" in {one["type"] for one in events}


@pytest.mark.parametrize("end", ["commit", "clear"])
def test_a_text_waits_for_no_hypothesis_of_speech_that_is_over(
    served: Running, speech: Waveform, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed or forgotten, and in the latter case no hypothesis of the next item either.

    The model is at work on it throughout.
    """
    monkeypatch.setattr(worker_module, "LIVE_SECONDS", 0.5)
    model = load("nano", device="cpu")
    held = Held(model, monkeypatch, first=1)
    worker = ModelWorker("nano", lambda: model, served.service.metrics, threads=2)
    monkeypatch.setattr(served.service, "worker", worker)

    async def talk() -> list[Event]:
        async with session(served) as socket:
            await set_input(socket, turn_detection=None)
            await append(socket, pcm(speech[: 2 * SAMPLE_RATE], 24000))
            await asyncio.to_thread(until, lambda: bool(held.begun))
            await send(socket, f"input_audio_buffer.{end}")
            if end == "clear":
                await append(socket, pcm(speech[: 2 * SAMPLE_RATE], 24000))
                await asyncio.to_thread(until, lambda: len(held.begun) == 2)
                await send(socket, "input_audio_buffer.commit")
            return await until_completed(socket)

    try:
        events = asyncio.run(talk())
        assert held.waiting == 1
        assert texts(events) != [""]
    finally:
        held.go.set()
        worker.close()


def test_silence_and_noise_have_no_words_and_cost_none_after_them(
    served: Running, speech: Waveform, heard: str
) -> None:
    """Users of other servers report sentences heard in silence, and crashes after a long one."""
    noise = np.random.default_rng(0).normal(0, 0.003, 10 * SAMPLE_RATE).astype(np.float32)
    silence = np.zeros(31 * SAMPLE_RATE, dtype=np.float32)  # longer than the model reads

    async def talk() -> tuple[list[Event], list[Event]]:
        async with session(served) as socket:
            await set_input(socket, format={"type": "audio/pcm", "rate": 16000})
            await append(socket, pcm(np.concatenate([silence, noise]), 16000), size=64000)
            await send(socket, "input_audio_buffer.commit")
            before = await until_completed(socket)
            await append(socket, pcm(speech, 16000), size=64000)
            after: list[Event] = []
            while len([text for text in texts(after) if text]) < 2:
                after += await until_completed(socket)
            return before, after

    before, after = asyncio.run(talk())
    assert set(texts(before)) == {""}
    assert joined_deltas(before) == ""
    assert " ".join(filter(None, texts(after))) == heard


def test_a_bad_message_is_told_and_costs_nothing_else(served: Running, speech: Waveform, heard: str) -> None:
    async def talk() -> list[str]:
        async with session(served) as socket:
            await set_input(socket, turn_detection=None)
            told = []
            bad: list[str | bytes] = [
                "{",
                "[]",
                '{"type": "response.create"}',
                '{"type": "input_audio_buffer.append", "audio": "!"}',
                b"\x00",
            ]
            for message in bad:
                await socket.send(message)
                answer = await event(socket)
                assert answer["type"] == "error"
                told.append(answer["error"]["message"])
            await append(socket, pcm(speech, 24000))
            await send(socket, "input_audio_buffer.commit")
            assert texts(await until_completed(socket)) == [heard]
            return told

    assert len(set(asyncio.run(talk()))) == 5


def test_endless_bad_messages_end_the_session(served: Running) -> None:
    async def talk() -> int | None:
        async with session(served) as socket:
            for _ in range(30):
                await socket.send("{")
            try:
                while True:
                    await event(socket)
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else None

    assert asyncio.run(talk()) == 1008


def test_many_streams_at_once_hear_what_each_hears_alone(served: Running, speech: Waveform, heard: str) -> None:
    async def talk(shift: int) -> str:
        async with session(served) as socket:
            await set_input(socket, turn_detection=None)
            await append(socket, pcm(speech, 24000), size=2000 * (shift + 1))
            await send(socket, "input_audio_buffer.commit")
            (text,) = texts(await until_completed(socket))
            return text

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*(talk(shift) for shift in range(3))))

    assert asyncio.run(all_of_them()) == [heard] * 3
