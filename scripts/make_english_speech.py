"""Make read English speech out of sentences, in many synthetic voices, to train a recognizer on.

The voices are engines that anybody can install; none is part of this project, and their speech is for training only:
`hibari-tts` (Apache-2.0), flite's voices slt, rms, awb and kal16 (Debian's `flite`), the Piper voice joe (CC0, run by
onnxruntime on espeak-ng's phonemes), and espeak-ng's own English voices. An engine that is not there is left out, with
a line that says so.

Example:
    python scripts/make_english_speech.py --sentences novels.txt.gz --without test.jsonl --output_dir ./read_speech

Promises: clip `i` depends on the seed and `i` alone (its sentence, voice, pace, pitch), so that an interrupted run goes
on where it stopped and `--shard k/n` splits the work; no sentence of a `--without` manifest is spoken. One clip in five
is made up rather than read: spelled names, digits, numbers, dates, addresses. With `--spoken`, the manifests of earlier
corpora, no sentence is spoken again, and those with the most words that nobody has said yet come first.
It does not know what is trained on it, and adds no noise and no room: `asr-doge features --augment_copies` does.
"""

import argparse
import heapq
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr_doge.audio.augmentation import change_speed
from asr_doge.audio.resampling import SAMPLE_RATE, resample
from asr_doge.audio.synthesis import Voice, phonemize, synthesize, voice_names
from asr_doge.data.digits import DIGIT_WORDS
from asr_doge.data.manifest import read_manifest
from asr_doge.data.text_files import read_lines
from asr_doge.errors import ASRDogeError, DataError
from asr_doge.text.normalization import normalize_training_text

Waveform = NDArray[np.float32]
Speak = Callable[[str, np.random.Generator], Waveform]
"""Text and a source of pace and pitch to samples at 16 kHz."""

MADE_UP_SHARE = 0.2
WORDS = (3, 18)
"""Fewest and most words of a sentence: longer ones make batches wasteful."""
SELDOM = 3
SHARES = {"hibari": 0.42, "slt": 0.13, "rms": 0.14, "awb": 0.09, "kal16": 0.04, "joe": 0.1, "espeak": 0.08}
ABBREVIATED = re.compile(r"\b[A-Z]\.|\b(?:St|Dr|Gen|Col|No|Hon|Rev|Messrs)\b\.?|[_*\[\]]")
"""What engines read each their own way."""
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_LETTERS = (
    "ay",
    "bee",
    "see",
    "dee",
    "ee",
    "eff",
    "gee",
    "aitch",
    "eye",
    "jay",
    "kay",
    "ell",
    "em",
    "en",
    "oh",
    "pee",
    "cue",
    "are",
    "ess",
    "tee",
    "you",
    "vee",
    "double-you",
    "ex",
    "why",
    "zee",
)
LETTER_NAMES = dict(zip(ALPHABET, _LETTERS, strict=True))
"""How letters are called; said as words, no engine takes an A for an article."""
TENS = (
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
)
TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
DAYS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
    "twentieth",
)


def read_sentences(files: list[Path], without: list[Path]) -> list[str]:
    """Sentences of a fitting length that any engine reads alike: no figures, no abbreviations but Mr and Mrs."""
    barred = {normalize_training_text(utterance.text) for path in without for utterance in read_manifest(path)}
    kept: dict[str, None] = {}
    for path in files:
        for line in read_lines(path):
            text = line.strip()
            plain = normalize_training_text(text)
            if (
                text.isascii()
                and re.fullmatch(r"[a-z' ]+", plain)
                and WORDS[0] <= len(plain.split()) <= WORDS[1]
                and plain not in barred
                and not ABBREVIATED.search(text)
            ):
                kept[text] = None
    return list(kept)


def most_new_words_first(sentences: list[str], spoken: list[Path]) -> list[str]:
    """The sentences that no manifest of `spoken` has, each next one with the most words that were not said before it.

    Only words that `sentences` use `SELDOM` times or more are counted: what is rarer are names and misprints.
    """
    said = {normalize_training_text(utterance.text) for path in spoken for utterance in read_manifest(path)}
    heard = {word for text in said for word in text.split()}
    plain = {text: normalize_training_text(text) for text in sentences}
    used = Counter(word for text in plain.values() for word in text.split())
    words = {
        text: {word for word in line.split() if used[word] >= SELDOM} - heard
        for text, line in plain.items()
        if line not in said
    }
    # What a sentence adds can only fall, so one that still adds what it added when it was queued adds the most.
    queue = [(-len(new), place, text) for place, (text, new) in enumerate(words.items())]
    heapq.heapify(queue)
    ordered = []
    while queue:
        gain, place, text = heapq.heappop(queue)
        words[text] -= heard
        if -gain == len(words[text]):
            ordered.append(text)
            heard |= words[text]
        else:
            heapq.heappush(queue, (-len(words[text]), place, text))
    return ordered


def below_hundred(number: int) -> str:
    """A number below a hundred in words."""
    if number < 10:
        return DIGIT_WORDS[number]
    if number < 20:
        return TEENS[number - 10]
    return TENS[number // 10 - 2] + (f" {DIGIT_WORDS[number % 10]}" if number % 10 else "")


def made_up(rng: np.random.Generator, words: list[str]) -> tuple[str, str]:
    """A line of spelled words, digits, numbers, dates or an address, as it is said and as it is written."""
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731 - three words for a line
    kind = rng.choice(["spelled", "letters", "digits", "number", "date", "address", "mixed"])
    digits = lambda low, high: [DIGIT_WORDS[i] for i in rng.integers(0, 10, rng.integers(low, high))]  # noqa: E731
    if kind == "spelled":
        word = pick(words)
        text = [*([word] if rng.random() < 0.4 else []), *word.replace("'", "")[:10]]
    elif kind == "letters":
        text = [pick(ALPHABET) for _ in range(int(rng.integers(1, 8)))]
    elif kind == "digits":
        text = [("oh" if digit == "zero" and rng.random() < 0.3 else digit) for digit in digits(1, 9)]
    elif kind == "number":
        hundred = [pick(DIGIT_WORDS[1:]), "hundred"] if rng.random() < 0.6 else []
        thousand = [below_hundred(int(rng.integers(1, 100))), "thousand"] if rng.random() < 0.5 else []
        text = [*thousand, *hundred, *(["and"] if hundred and rng.random() < 0.5 else [])]
        text.append(below_hundred(int(rng.integers(1, 100))))
    elif kind == "date":
        year = [pick(["nineteen", "eighteen", "twenty"]), below_hundred(int(rng.integers(10, 100)))]
        day = pick([pick(DAYS), below_hundred(int(rng.integers(1, 32))), "twenty " + pick(DAYS[:9])])
        text = [pick(MONTHS), day, *(year if rng.random() < 0.7 else [])]
    elif kind == "address":
        text = [*digits(1, 5), pick(words), pick(["street", "avenue", "road", "lane", "drive"])]
    else:
        text = [pick([pick(ALPHABET), pick(DIGIT_WORDS), pick(words)]) for _ in range(6)]
    said = [LETTER_NAMES[part] if len(part) == 1 and part != "'" else part for part in text]
    pause = ", " if rng.random() < 0.3 else " "
    return pause.join(said) + ".", " ".join(text)


def hibari_voice() -> Speak:
    """One neural voice, moved in pitch and size of throat over the range of women, men and children."""
    from hibari import Hibari, dsp

    engine = Hibari()

    def speak(text: str, rng: np.random.Generator) -> Waveform:
        throat = rng.uniform(0.84, 1.14)
        pitch, pace = rng.choice([rng.uniform(0.5, 0.7), rng.uniform(0.8, 1.2)]) / throat, rng.uniform(0.75, 1.2)
        parts = []
        for phonemes in engine.phonemize(text):
            inputs = {
                "ids": np.asarray([engine.ids(phonemes)], np.int64),
                "speed": np.asarray([pace / throat], np.float32),
            }
            *spectra, tone = (output[0] for output in engine.sess.run(None, inputs))
            parts.append(dsp.synth(*spectra, tone * np.float32(pitch), rng))
        return change_speed(resample(np.concatenate(parts), engine.sample_rate, SAMPLE_RATE), throat)

    return speak


def flite_voice(program: str, name: str) -> Speak:
    """One of flite's voices, at another pace, and played a little faster or slower."""

    def speak(text: str, rng: np.random.Generator) -> Waveform:
        factor = rng.uniform(0.88, 1.14)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            stretch = f"duration_stretch={factor * rng.uniform(0.85, 1.3):.3f}"
            subprocess.run(
                [program, "-voice", name, "--setf", stretch, "-t", text, "-o", str(path)],
                check=True,
                capture_output=True,
            )
            samples, rate = soundfile.read(path, dtype="float32")
        return change_speed(resample(samples, rate, SAMPLE_RATE), factor)

    return speak


def espeak_voices() -> Speak:
    """espeak-ng's English accents, each in all its variants."""
    names = voice_names()

    def speak(text: str, rng: np.random.Generator) -> Waveform:
        voice = Voice(
            names[int(rng.integers(len(names)))], int(rng.integers(130, 200)), *map(int, rng.integers(20, 80, 2))
        )
        return synthesize(text, voice)

    return speak


def piper_voice(model: Path) -> Speak:
    """A Piper voice: phonemes to samples by one ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options)
    settings = json.loads(model.with_suffix(".onnx.json").read_text(encoding="utf-8"))
    ids_of, rate = settings["phoneme_id_map"], settings["audio"]["sample_rate"]

    def speak(text: str, rng: np.random.Generator) -> Waveform:
        factor = rng.uniform(0.88, 1.14)
        ids = [*ids_of["^"], *ids_of["_"]]
        for phoneme in phonemize(text) + ".":
            if phoneme in ids_of:
                ids += [*ids_of[phoneme], *ids_of["_"]]
        ids += ids_of["$"]
        scales = [0.667, factor * rng.uniform(0.85, 1.3), 0.8]
        inputs = {
            "input": np.asarray([ids], np.int64),
            "input_lengths": np.asarray([len(ids)], np.int64),
            "scales": np.asarray(scales, np.float32),
        }
        samples = np.asarray(session.run(None, inputs)[0], np.float32).reshape(-1)
        return change_speed(resample(samples, rate, SAMPLE_RATE), factor)

    return speak


def build_voices(names: list[str], flite: str, joe: Path | None) -> dict[str, Speak]:
    """The engines of these names that are here; a line for each that is not."""
    voices: dict[str, Speak] = {}
    for name in names:
        try:
            voices[name] = _build_voice(name, flite, joe)
        except (ImportError, OSError, subprocess.CalledProcessError, ASRDogeError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    if not voices:
        raise DataError("no voice is there: pip install 'asr-doge[synthesis]'")
    return voices


def _build_voice(name: str, flite: str, joe: Path | None) -> Speak:
    if name == "hibari":
        return hibari_voice()
    if name == "espeak":
        return espeak_voices()
    if name == "joe":
        if joe is None:
            raise DataError("give --joe, its ONNX file")
        return piper_voice(joe)
    voice = flite_voice(flite, name)
    voice("test", np.random.default_rng(0))
    return voice


@lru_cache
def shares(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Each engine's share of the clips, over those that are here."""
    wanted = np.array([SHARES[name] for name in names])
    return wanted / wanted.sum()


def clips(
    flags: argparse.Namespace, sentences: list[str], voices: dict[str, Speak]
) -> Iterator[tuple[str, str, str, Waveform]]:
    """Id, text, voice and samples of each clip of this shard that is not there yet."""
    names = tuple(voices)
    words = sorted(
        {word for text in sentences[:20000] for word in normalize_training_text(text).split() if len(word) > 2}
    )
    order = np.arange(len(sentences)) if flags.spoken else np.random.default_rng(flags.seed).permutation(len(sentences))
    part, parts = map(int, flags.shard.split("/"))
    for index in range(flags.first + part, flags.first + flags.count, parts):
        rng = np.random.default_rng([flags.seed, index])
        name = str(rng.choice(names, p=shares(names)))
        if rng.random() < MADE_UP_SHARE:
            said, text = made_up(rng, words)
        else:
            said = sentences[order[index % len(sentences)]]
            text = normalize_training_text(said)
        clip_id = f"{name}-{index:06d}"
        if not (flags.output_dir / "audio" / f"{clip_id}.flac").exists():
            yield clip_id, text, name, voices[name](said, rng)


def main() -> int:
    """Read the flags and speak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sentences", type=Path, nargs="+", required=True, help="text files, a sentence a line (or .gz)"
    )
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="manifests whose sentences are not spoken")
    parser.add_argument(
        "--spoken",
        type=Path,
        nargs="*",
        default=[],
        help="manifests of earlier corpora: new sentences, new words first",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="corpus to write: audio/ and train.jsonl")
    parser.add_argument("--count", type=int, default=6000, help="clips (default: 6000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip (default: 0)")
    parser.add_argument("--shard", default="0/1", help="this process's share of them: k/n (default: 0/1)")
    parser.add_argument(
        "--voices", nargs="+", default=list(SHARES), choices=list(SHARES), help="engines (default: all)"
    )
    parser.add_argument("--flite", default="flite", help="the flite program (default: flite)")
    parser.add_argument("--joe", type=Path, help="the Piper voice en_US-joe-medium.onnx, its .json beside it")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    flags = parser.parse_args()
    try:
        make_speech(flags)
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_speech(flags: argparse.Namespace) -> None:
    """Write the clips of this shard that are not there yet, and their manifest."""
    sentences = read_sentences(flags.sentences, flags.without)
    if not sentences:
        raise DataError("--sentences hold none of 3 to 18 plain words: give a text file with a sentence a line")
    if flags.spoken:
        sentences = most_new_words_first(sentences, flags.spoken)
        if not sentences:
            raise DataError("--spoken have every sentence of --sentences: give more text")
    (flags.output_dir / "audio").mkdir(parents=True, exist_ok=True)
    voices = build_voices(flags.voices, flags.flite, flags.joe)
    print(f"{len(sentences)} sentences, voices: {', '.join(voices)}", flush=True)
    manifest = flags.output_dir / f"train{'' if flags.shard == '0/1' else '-' + flags.shard.replace('/', '-of-')}.jsonl"
    seconds = 0.0
    with manifest.open("a", encoding="utf-8") as lines:
        for number, (clip_id, text, name, samples) in enumerate(clips(flags, sentences, voices), start=1):
            path = flags.output_dir / "audio" / f"{clip_id}.flac"
            peak = max(0.05, float(np.abs(samples).max(initial=0.0)))
            partial = path.with_suffix(".partial")
            soundfile.write(partial, samples * np.float32(0.7 / peak), SAMPLE_RATE, format="FLAC")
            duration = len(samples) / SAMPLE_RATE
            entry = {"id": clip_id, "audio_path": f"audio/{path.name}", "text": text}
            lines.write(json.dumps(entry | {"duration": round(duration, 3), "speaker": name}) + "\n")
            lines.flush()
            partial.replace(path)
            seconds += duration
            if number % 100 == 0:
                print(f"{number} clips, {seconds / 3600:.2f} h", flush=True)


if __name__ == "__main__":
    sys.exit(main())
