"""The programs beside the package, run as a user runs them."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_doge.data import read_manifest
from asr_doge.data.digits import DIGIT_WORDS, split_voices, synthesized_clips
from tests import speech
from tests.cli.reproducing import KILLED_AT_WRITE
from tests.models import tiny

ROOT = Path(__file__).parents[2]


def run_script(python: Path, name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(python), str(ROOT / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )


@pytest.fixture
def fsdd(tmp_path: Path) -> Path:
    for speaker in ("ann", "bob"):
        for digit in range(10):
            for take in (0, 5):
                path = tmp_path / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav"
                speech.write_wav(path, tiny.random_waveform(0.2, seed=digit), rate=8000)
    return tmp_path / "fsdd"


def test_sentences_are_spoken_once_and_none_of_a_test_set(python: Path, tmp_path: Path) -> None:
    lines = ["The cat sat on the mat.", "Nobody knows 7 of them.", "A dog ran very fast.", "She said nothing at all."]
    (tmp_path / "sentences.txt").write_text("\n".join(lines))
    line = {"id": "1", "audio_path": "1.wav", "text": "A DOG RAN VERY FAST", "duration": 1.0}
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")
    flags = ("--sentences", tmp_path / "sentences.txt", "--without", tmp_path / "test.jsonl", "--voices", "espeak")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    finished = run_script(python, "scripts/make_english_speech.py", *flags, "--output_dir", whole, "--count", "8")
    assert finished.returncode == 0
    assert "2 sentences, voices: espeak" in finished.stdout
    for count in ("3", "8"):
        run_script(python, "scripts/make_english_speech.py", *flags, "--output_dir", resumed, "--count", count)
    assert (whole / "train.jsonl").read_bytes() == (resumed / "train.jsonl").read_bytes()
    utterances = read_manifest(whole / "train.jsonl")
    assert len({utterance.id for utterance in utterances}) == 8
    texts = {utterance.text for utterance in utterances}
    assert texts & {"the cat sat on the mat", "she said nothing at all"}
    assert "a dog ran very fast" not in texts
    for utterance in utterances:
        samples, rate = soundfile.read(utterance.audio_path)
        assert rate == 16_000
        assert len(samples) / rate == pytest.approx(utterance.duration, abs=0.001)


def test_new_sentences_come_with_the_most_new_words_first(python: Path, tmp_path: Path) -> None:
    sentences = [
        "birds see fish swim",
        "cats chase dogs",
        "birds cats fish",
        "swim dogs chase",
        "see birds swim",
        "dogs see fish chase cats",
    ]
    (tmp_path / "sentences.txt").write_text("\n".join([*sentences, "cats see birds", "ten rarer words are no gain"]))
    line = {"id": "1", "audio_path": "1.wav", "text": "CATS SEE BIRDS", "duration": 1.0}
    (tmp_path / "spoken.jsonl").write_text(json.dumps(line) + "\n")
    finished = run_script(
        python,
        "scripts/make_english_speech.py",
        *("--sentences", tmp_path / "sentences.txt", "--spoken", tmp_path / "spoken.jsonl", "--voices", "espeak"),
        *("--output_dir", tmp_path / "out", "--count", "7"),
    )
    assert "7 sentences" in finished.stdout
    texts = [utterance.text for utterance in read_manifest(tmp_path / "out" / "train.jsonl")]
    # Three new words, then fish alone is new; the rest have none. One clip in five is made up in its sentence's place.
    order = [sentences[place] for place in (3, 0, 1, 2, 4, 5)] + ["ten rarer words are no gain"]
    assert [text for text in texts if text in order] == [text for text in order if text in texts]
    assert len(set(texts) & set(order)) >= 4


def test_what_holds_no_sentence_is_one_line(python: Path, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("1, 2, 3\n")
    finished = run_script(
        python,
        "scripts/make_english_speech.py",
        "--sentences",
        tmp_path / "sentences.txt",
        "--output_dir",
        tmp_path / "out",
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: --sentences hold none")


def test_digit_strings_of_recordings_and_of_voices(python: Path, fsdd: Path, tmp_path: Path) -> None:
    finished = run_script(
        python,
        "scripts/make_digit_strings.py",
        *("--digits_dir", fsdd, "--output_dir", tmp_path / "corpus", "--split", "train", "--without", "bob"),
        *("--count", "3", "--synthesized", "2"),
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    manifest = tmp_path / "corpus" / "train.jsonl"
    assert finished.stdout == f"3 strings of each of ann, 2 synthesized: {manifest}\n"
    utterances = read_manifest(manifest)
    assert [utterance.speaker for utterance in utterances[:3]] == ["ann"] * 3
    assert {utterance.speaker for utterance in utterances[3:]} <= set(split_voices().train)
    for utterance in utterances:
        assert set(utterance.text.split()) <= set(DIGIT_WORDS)
        assert utterance.audio_path.is_file()


def test_a_mistake_is_one_line(python: Path, fsdd: Path, tmp_path: Path) -> None:
    (fsdd / "recordings" / "7_bob_0.wav").unlink()
    (fsdd / "recordings" / "7_bob_5.wav").unlink()
    for folder, named in ((tmp_path, "no all recordings"), (fsdd, "recording of seven by bob")):
        out = tmp_path / "corpus"
        finished = run_script(python, "scripts/make_digit_strings.py", "--digits_dir", folder, "--output_dir", out)
        assert (finished.returncode, finished.stdout) == (2, "")
        (line,) = finished.stderr.splitlines()
        assert line.startswith("error: ")
        assert named in line
        assert not out.exists()


def test_the_published_way_goes_on_wherever_it_is_killed(python: Path, tmp_path: Path) -> None:
    """`reproduce.sh`, from recordings to the table, each stage killed once as it writes."""
    for speaker, digit, take in itertools.product(("ann", "lucas"), range(10), (0, 5)):
        path = tmp_path / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav"
        speech.write_wav(path, tiny.random_waveform(0.2, seed=digit), rate=8000)
    parts = "speech_encoder: nano/encoder, language_model: nano/language_model, adapter_hidden_dim: 16"
    sizes = "batch_size: 2, epochs: 2, eval_steps: 2, save_steps: 2, eval_samples: 1"
    config = speech.write_yaml(
        tmp_path / "config.yaml",
        [
            "process: {dataset: manifest, min_duration: 0.3}",
            "features: {speech_encoder: nano/encoder}",
            f"train: {{{parts}, {sizes}}}",
            "benchmark: {max_samples: 1, num_speed_runs: 1}",
        ],
    )
    # Not from this process, which has computed: its forks could not.
    command = [str(python), "-m", "tests.cli.reproducing", str(config), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    *runs, last, again = json.loads(finished.stdout)
    code, printed = last
    assert [code for code, _ in runs] == [137] * len(KILLED_AT_WRITE), printed
    assert "--resume_from latest" in runs[4][1]
    assert code == 0, printed
    *_, wer, _, _, _, trained, utterances, _ = printed.splitlines()
    assert wer.split()[:2] == ["WER", "%"]
    assert wer.split()[3] == "4.70"
    assert trained.split()[-1] == "1,574,400"
    assert utterances.split() == ["utterances", "1", "200"]
    assert again[0] == 0
    assert again[1].splitlines()[-7:] == printed.splitlines()[-7:]


def test_the_example_transcribes_with_nano(python: Path, tmp_path: Path) -> None:
    (clip,) = synthesized_clips(1, split_voices().train, seed=3)
    path = speech.write_wav(tmp_path / "digits.wav", np.clip(clip.waveform, -1.0, 1.0))
    finished = run_script(python, "examples/inference.py", "--checkpoint_dir", "nano", "--audio_path", path)
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    assert set(line.split()) <= set(DIGIT_WORDS)
    assert line


def test_the_example_says_what_is_wrong_in_one_line(python: Path, tmp_path: Path) -> None:
    finished = run_script(
        python, "examples/inference.py", "--checkpoint_dir", "./none", "--audio_path", tmp_path / "a.wav"
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: unknown model './none'")


def test_sentences_of_texts_end_at_their_marks_and_have_no_figures(python: Path, tmp_path: Path) -> None:
    (tmp_path / "speech.json").write_text(
        json.dumps(
            {
                "text": 'Gen. Smith came home early. In 1890 he left again! "Was it he?" they asked at once.\n\nNo.'
                " He said (\u201cI go home.\u201d) \u201cThen he left.\u201d"
            }
        )
    )
    (tmp_path / "book.txt").write_text("Call me by\nmy own name. Gen. Smith came home early.")
    written = tmp_path / "sentences.txt"

    finished = run_script(
        python, "scripts/make_sentences.py", tmp_path / "speech.json", tmp_path / "book.txt", "--output", written
    )

    assert finished.returncode == 0, finished.stderr
    assert written.read_text().splitlines() == [
        "Gen. Smith came home early.",
        '"Was it he?" they asked at once.',
        "He said (\u201cI go home.\u201d)",
        "\u201cThen he left.\u201d",
        "Call me by my own name.",
    ]
    (tmp_path / "broken.json").write_text('{"text": 5}')
    files = (tmp_path / "broken.json", tmp_path / "book.txt")
    refused = run_script(python, "scripts/make_sentences.py", *files, "--output", written)
    assert refused.returncode == 2
    assert "broken.json has no text" in refused.stderr
    assert "of 1 of 2 files" in refused.stdout
    assert len(written.read_text().splitlines()) == 2


def test_a_mix_has_each_manifest_so_many_times(python: Path, tmp_path: Path) -> None:
    for name, text, seconds in (
        ("human", "Hello, THERE", 2.0),
        ("made", "yes", 3.0),
        ("made", "?", 1.0),
        ("made", "no", 20.0),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        line = {"id": text, "audio_path": f"{text[0]}.wav", "text": text, "duration": seconds}
        with (tmp_path / name / "train.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
    output = tmp_path / "mixed" / "train.jsonl"

    finished = run_script(
        python,
        "scripts/mix_manifests.py",
        f"{tmp_path}/human/train.jsonl=3",
        f"{tmp_path}/made/train.jsonl=2",
        "--output",
        output,
    )

    assert finished.returncode == 0, finished.stderr
    mixed = read_manifest(output)
    assert sorted((utterance.text, utterance.audio_path.name) for utterance in mixed) == [
        *[("hello there", "H.wav")] * 3,
        *[("yes", "y.wav")] * 2,
    ]
    assert {utterance.audio_path.parent for utterance in mixed} == {tmp_path / "human", tmp_path / "made"}
    refused = run_script(python, "scripts/mix_manifests.py", "train.jsonl", "--output", output)
    assert refused.returncode == 2
    assert "give MANIFEST=TIMES" in refused.stderr
