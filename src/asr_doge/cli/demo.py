"""`asr-doge demo`: every step from recordings to transcripts, on speech synthesized for it."""

import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import soundfile
from rich.console import Console
from transformers import set_seed

from asr_doge.audio.resampling import SAMPLE_RATE
from asr_doge.audio.synthesis import Voice, synthesize
from asr_doge.benchmark import ASRDogeBenchmark
from asr_doge.benchmark.results import BenchmarkResult
from asr_doge.cli.commands import parse_command, run_command
from asr_doge.cli.configuration import DemoConfig
from asr_doge.cli.tables import benchmark_table
from asr_doge.data.digits import split_voices, synthesized_clips, write_clips
from asr_doge.errors import ConfigError
from asr_doge.models import assemble_model
from asr_doge.models.fetching import local_folder
from asr_doge.progress import progress_bar

ENCODER, LANGUAGE_MODEL = "nano/encoder", "nano/language_model"
ENGLISH_ENCODER = "openai/whisper-base"
SENTENCE = "they had not heard from the captain of the ship for many years"
ADAPTER_HIDDEN_DIM = 256
MARKER = ".asr-doge-demo"
"""File that says of a folder that a demo made it, and may clear it."""
PARTS = ("corpus", "processed", "checkpoints", "benchmark")

Result = TypeVar("Result")


def run(config: DemoConfig) -> int:
    """Run the command; returns the exit code."""
    if config.train_utterances < 100:
        raise ConfigError(f"--train_utterances {config.train_utterances}: too few to learn from; at least 100")
    console = Console(soft_wrap=True, highlight=False)
    start = time.perf_counter()
    folder = Path(config.output_dir)
    corpus, processed, checkpoints, reports = (folder / part for part in PARTS)
    _claim(folder)

    console.rule("1. speech: digit strings in voices that nano has never heard")
    _synthesize(corpus, config)
    console.rule("2. process: corpus to manifests")
    _say(
        console,
        run_command,
        ["process", "--dataset", "manifest", "--data_dir", str(corpus), "--output_dir", str(processed)],
    )
    console.rule("3. features: the frozen encoder, once")
    _say(console, run_command, ["features", "--data_dir", str(processed), "--speech_encoder", ENCODER])
    console.rule("4. train: the adapter, from a random start")
    set_seed(config.seed)  # as `train` does, so that this is the adapter it starts from
    assemble_model(ENCODER, LANGUAGE_MODEL, adapter_hidden_dim=ADAPTER_HIDDEN_DIM).save(checkpoints / "untrained")
    _say(
        console,
        run_command,
        [
            "train",
            *("--data_dir", str(processed), "--features_dir", str(processed / "features")),
            *("--speech_encoder", ENCODER, "--language_model", LANGUAGE_MODEL),
            *("--adapter_hidden_dim", str(ADAPTER_HIDDEN_DIM), "--epochs", "8", "--patience", "10"),
            *("--warm_up", "none"),  # nano's language model was trained with such an adapter
            *("--seed", str(config.seed), "--output_dir", str(checkpoints)),
        ],
    )
    console.rule("5. benchmark: before and after")
    results = {}
    for name in ("untrained", "best"):
        places = ["--checkpoint_dir", str(checkpoints / name), "--data_dir", str(processed)]
        results[name] = _say(console, _measure, ["benchmark", *places, "--output_dir", str(reports / name)])
    console.rule("6. transcribe: a few test clips")
    clips = [str(path) for path in sorted((corpus / "audio" / "test").glob("*.wav"))[:4]]
    _say(console, run_command, ["transcribe", *clips, "--model", str(checkpoints / "best")])
    for sample in results["best"].samples[:4]:
        console.print(f"  said: {sample.reference}")

    _transcribe_a_sentence(console, corpus / "sentence.wav")

    console.rule("result")
    console.print(benchmark_table({"before (random adapter)": results["untrained"], "after": results["best"]}))
    console.print(f"corpus      {corpus}\nmanifests   {processed}\nfeatures    {processed / 'features'}")
    console.print(f"checkpoint  {checkpoints / 'best'}")
    for name, result in results.items():
        console.print(f"report      {result.page_path} ({name})")
    console.print(f"{time.perf_counter() - start:.0f} seconds in all")
    return 0


def _claim(folder: Path) -> None:
    """Make the folder, or clear it of an earlier demo's files; a folder with other files is an error."""
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder} is a file: choose another")
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise ConfigError(f"--output_dir {folder} holds files that no demo made: choose another, empty or new")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for part in PARTS:
        if (folder / part).exists():
            shutil.rmtree(folder / part)


def _synthesize(corpus: Path, config: DemoConfig) -> None:
    """Write train, dev and test strings; no voice is in two of them."""
    voices = split_voices().unseen
    test_voices, dev_voices = voices[::4], voices[1::8]
    train_voices = sorted({*voices} - {*test_voices, *dev_voices})
    few = config.train_utterances // 12
    for number, (split, count, names) in enumerate(
        (("train", config.train_utterances, train_voices), ("dev", few, dev_voices), ("test", few, test_voices))
    ):
        clips = synthesized_clips(count, names, seed=3 * config.seed + number)
        bar = progress_bar(clips, total=count, desc=f"speaking {split}", unit="utt")
        write_clips(corpus, split, bar)


def _transcribe_a_sentence(console: Console, path: Path) -> None:
    """Transcribe English with the default model, if its speech encoder need not be downloaded for it."""
    console.rule("7. english: a sentence")
    soundfile.write(path, synthesize(SENTENCE, Voice("en-us")), SAMPLE_RATE)
    if local_folder(ENGLISH_ENCODER) is not None:
        _say(console, run_command, ["transcribe", str(path)])
    else:
        console.print(f"to transcribe it, which downloads {ENGLISH_ENCODER} once: asr-doge transcribe {path}")
    console.print(f"  said: {SENTENCE}")


def _measure(command: str, arguments: Sequence[str]) -> BenchmarkResult:
    """The `benchmark` command without its table, for there is one of all results at the end."""
    return ASRDogeBenchmark(parse_command(command, arguments)).run_full_benchmark()


def _say(console: Console, run: Callable[[str, Sequence[str]], Result], command: Sequence[str]) -> Result:
    """Show the command a user would type, and run it."""
    console.print(f"$ asr-doge {shlex.join(command)}", style="bold", markup=False)
    return run(command[0], command[1:])
