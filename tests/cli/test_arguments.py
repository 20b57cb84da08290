"""Flags, help and configuration files of every command: a mistake is one line that names what to mend."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from asr_doge.cli.commands import COMMANDS, parse_command, section
from asr_doge.cli.configuration import BenchmarkJobConfig, InfoConfig
from asr_doge.data.corpora import CORPORA
from asr_doge.errors import ConfigError
from asr_doge.scaling.configuration import FeaturesJobConfig, TranscribeJobConfig
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.pretraining_configuration import PretrainConfig
from tests.cli.conftest import Command
from tests.speech import write_yaml

CONFIGS = {name: subcommand.config_class for name, subcommand in COMMANDS.items()}
REQUIRED = {
    "process": ["--data_dir", "in", "--output_dir", "out"],
    "merge": ["--checkpoint_dir", "in", "--output_dir", "out"],
    "pretrain": ["--output_dir", "out", "--digits_dir", "in"],
    "pretrain encoder": ["--digits_dir", "in"],
    "pretrain language_model": ["--output_dir", "out", "--text_files", "[in]", "--without_manifests", "[test]"],
    "pretrain punctuation": ["--output_dir", "out", "--text_files", "[in]", "--without_manifests", "[test]"],
}
RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DEFAULT_RECIPE, NANO_RECIPE = (RECIPES[0].parent / f"{name}.yaml" for name in ("default", "nano"))
COMMAND_OF = {section(subcommand): subcommand for subcommand in COMMANDS}
SECTIONS = [(recipe, name) for recipe in RECIPES for name in yaml.safe_load(recipe.read_text())]


def parse(subcommand: str, *arguments: str) -> Any:
    return parse_command(subcommand, [*REQUIRED.get(subcommand, []), *arguments])


def refused(subcommand: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(subcommand, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("subcommand", CONFIGS)
def test_help_states_type_default_and_meaning_of_every_flag(subcommand: str, command: Command) -> None:
    outcome = command(subcommand, "--help")
    assert outcome.code == 0
    usage, _, details = "\n".join(outcome.out).partition("\n\n")
    details = " ".join(details.split())
    assert f"For example: asr-doge {subcommand}" in details
    arguments, _, flags = details.partition(" options: ")
    for field in dataclasses.fields(CONFIGS[subcommand]):
        if field.name == COMMANDS[subcommand].positional:
            about = arguments.rpartition(f" {field.name} ")[2]
        else:
            about = re.split(r" --\w+ [A-Z{\[]", flags.partition(f" --{field.name} ")[2])[0]  # up to the next flag
        meaning, _, facts = about.rpartition("(")
        assert "type: " in facts, field.name
        assert "default: " in facts or "required" in facts, field.name
        assert len(meaning.split()) >= 4, field.name
        assert field.name in usage
    assert "<class" not in details
    assert "Settings of" not in details


def test_without_a_command_the_commands_are_listed(command: Command) -> None:
    for arguments, code in (([], 2), (["--help"], 0), (["-h"], 0)):
        outcome = command(*arguments)
        assert outcome.code == code
        for name, subcommand in COMMANDS.items():
            assert any(name in line and subcommand.meaning in line for line in outcome.out)
    assert command("--version").out[0].startswith("asr-doge 0.")


def test_help_does_not_wait_for_torch() -> None:
    program = f"""
import sys
from asr_doge.cli import main
for command in {[*COMMANDS]!r}:
    assert main([command, "--help"]) == 0
    if {{"torch", "transformers"}} & sys.modules.keys():
        sys.exit(command)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert all(f"asr-doge {command} " in finished.stdout for command in COMMANDS)


def test_mistakes_do_not_wait_for_torch(tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    empty.touch()
    program = f"""
import sys
from asr_doge.cli import main
transcribe = [["transcribe", *rest] for rest in ([], ["a.wav", {str(empty)!r}], ["a.wav", "--format", "docx"])]
commands = "features", "train", "benchmark", "pretrain ctc_head"
of_data = [[*command.split(), "--data_dir", "no"] for command in commands]
for arguments in (*transcribe, *of_data, ["train", "--dev_manifest", "dev.json", "--train_manifest", "/dev/null"]):
    assert main(arguments) == 2
    if {{"torch", "transformers"}} & sys.modules.keys():
        sys.exit(str(arguments))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "")
    nothing, missing, nothing_in_it, _, docx, *of_data = finished.stderr.splitlines()
    assert nothing.startswith("error: nothing to transcribe")
    assert missing.startswith("error: a.wav does not exist")
    assert nothing_in_it.startswith(f"error: {empty} is empty")
    assert docx.startswith("error: --format 'docx'")
    names = (
        "_manifest.json in no",
        "no/train_manifest.json",
        "no/test_manifest.json",
        "no/train_manifest.json",
        "dev.json",
    )
    for line, name in zip(of_data, names, strict=True):
        assert line.startswith("error: ")
        assert name in line


def test_an_unknown_verb_is_one_line(command: Command) -> None:
    outcome = command("trane")
    assert (outcome.code, outcome.out) == (2, [])
    assert outcome.err == [f"asr-doge: unknown command 'trane'; choose from {', '.join(COMMANDS)}"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--batch_sise", "3"], "--batch_sise"),
        (["train", "--batch_siz", "3"], "--batch_siz"),  # nor is an abbreviation guessed at
        (["train", "--batch-size", "3"], "--batch-size"),
        (["train", "--batch_size", "many"], "batch_size"),
        (["train", "--batch_size", "2.5"], "batch_size"),
        (["train", "--batch_size"], "--batch_size"),
        (["train", "--learning_rate", ""], "learning_rate"),
        (["train", "--adapter_type", "cnn"], "adapter_type"),
        (["train", "--no_wandb", "perhaps"], "perhaps"),
        (["train", "extra"], "extra"),
        (["train", "--config"], "--config"),
        (["process"], "data_dir"),
        (["process", "--data_dir", "x"], "output_dir"),
        (["pretrain"], "digits_dir"),
        (["transcribe", "--format", "xml", "a.wav"], "format"),
        (["transcribe", "--batch_size", "0", "a.wav"], "--batch_size"),
        (["transcribe", "--num_beams", "-1", "a.wav"], "--num_beams"),
        (["transcribe", "--guard_silence", "maybe", "a.wav"], 'guard_silence": Expected a bool. Got value: maybe'),
        (["transcribe", "--accept_threshold", "x", "a.wav"], 'accept_threshold": Expected a float. Got value: x'),
        (["transcribe", "--decoder", "x", "a.wav"], "one of 'draft', 'greedy', 'beam', 'ctc', 'fusion'. Got value: x"),
        (["transcribe"], "nothing to transcribe"),
        (["features", "--batch_size", "x"], "batch_size"),
        (["benchmark", "--max_samples", "all"], "max_samples"),
        (["benchmark", "--test_manifest", __file__, "--max_samples", "-3"], "--max_samples"),
        (["demo", "--train_utterances", "5"], "--train_utterances"),
        (["info", "--model"], "--model"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(command: Command, arguments: list[str], named: str) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.out) == (2, [])
    (line,) = outcome.err
    assert line.startswith("error: ")
    assert named in line


def test_boolean_flags_need_no_value() -> None:
    assert parse("train").no_wandb is False
    assert parse("train", "--no_wandb").no_wandb is True
    assert parse("train", "--no_wandb", "--epochs", "3").epochs == 3
    assert parse("train", "--no_wandb", "false", "--epochs", "3").no_wandb is False
    assert parse("train", "--no_wandb=true").no_wandb is True
    assert parse("transcribe", "--stream", "a.wav") == TranscribeJobConfig(["a.wav"], stream=True)
    assert parse("transcribe", "--guard_silence", "False", "a.wav") == TranscribeJobConfig(
        ["a.wav"], guard_silence=False
    )
    assert parse("transcribe", "--guard_silence", "no", "a.wav") == TranscribeJobConfig(["a.wav"], guard_silence=False)


def test_flags_become_the_configuration() -> None:
    config = parse("train", "--learning_rate", "2e-4", "--epochs", "3", "--device", "cpu", "--prompt_template", "say: ")
    assert config == TrainConfig(learning_rate=2e-4, epochs=3.0, device="cpu", prompt_template="say: ")
    assert parse("transcribe", "a.wav", "b c.mp3", "--format", "json") == TranscribeJobConfig(
        ["a.wav", "b c.mp3"], format="json"
    )
    assert parse("process", "--train_split", "", "--dev_split", "7").dev_split == "7"
    assert parse("process", "--train_split", "").train_split == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.wav", "b.wav", "--format", "json"],
        ["a.wav", "--format", "json", "b.wav"],
        ["--format", "json", "a.wav", "b.wav"],
        ["a.wav", "--format=json", "b.wav"],
        ["--format", "json", "a.wav", "--", "b.wav"],
    ],
)
def test_files_may_stand_anywhere(arguments: list[str]) -> None:
    assert parse("transcribe", *arguments) == TranscribeJobConfig(["a.wav", "b.wav"], format="json")


def test_files_may_stand_in_a_configuration_file(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", ["files: [a.wav, b.wav]", "format: json"])
    assert parse("transcribe", "--config", str(path)) == TranscribeJobConfig(["a.wav", "b.wav"], format="json")
    assert parse("transcribe", "--config", str(path), "c.wav") == TranscribeJobConfig(["c.wav"], format="json")


def test_after_two_dashes_everything_is_a_file() -> None:
    config = parse("transcribe", "--model", "m", "--", "-odd.wav", "--model")
    assert config == TranscribeJobConfig(["-odd.wav", "--model"], model="m")
    assert "-odd.wav" in refused("transcribe", "-odd.wav")


@pytest.mark.parametrize("subcommand", CONFIGS)
def test_without_flags_everything_is_as_the_dataclass_says(subcommand: str) -> None:
    config = parse(subcommand)
    for field in dataclasses.fields(CONFIGS[subcommand]):
        if field.default is not dataclasses.MISSING:
            assert getattr(config, field.name) == field.default


def test_a_file_gives_values_and_flags_override_them(tmp_path: Path) -> None:
    flat = write_yaml(
        tmp_path / "flat.yaml", ["batch_size: 3", "epochs: 2", "prompt_template: 'say: '", "no_wandb: true"]
    )
    for arguments in (["--config", str(flat), "--epochs", "5"], ["--epochs", "5", f"--config={flat}"]):
        config = parse("train", *arguments)
        assert (config.epochs, config.batch_size, config.prompt_template, config.no_wandb) == (5, 3, "say: ", True)
    later = write_yaml(tmp_path / "later.yaml", ["batch_size: 4"])
    assert parse("train", "--config", str(flat), "--config", str(later)).batch_size == 4  # of two files the last wins


@pytest.mark.parametrize("number", ["2e-3", "2.0e-3", "0.002"])
def test_numbers_may_be_written_in_any_way(tmp_path: Path, number: str) -> None:
    path = write_yaml(tmp_path / "a.yaml", [f"learning_rate: {number}"])
    assert parse("train", "--config", str(path)).learning_rate == 0.002


def test_a_file_may_serve_several_verbs(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", ["train:", "  epochs: 7", "features:", "  num_workers: 2", "benchmark:"])
    assert parse("train", "--config", str(path)) == TrainConfig(epochs=7.0)
    assert parse("features", "--config", str(path)) == FeaturesJobConfig(num_workers=2)
    assert parse("benchmark", "--config", str(path)) == BenchmarkJobConfig()
    assert parse("info", "--config", str(path)) == InfoConfig()  # no section of its own


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["batch_sise: 3"], "batch_sise"),
        (["train:", "  batch_sise: 3"], "batch_sise"),
        (["batch_size: many"], "batch_size"),
        (["trian:", "  batch_size: 3"], "trian"),  # else it would be passed over in silence
        (["train:", "  batch_size: 3", "epochs: 2"], "epochs"),
        (["- a", "- b"], "a.yaml"),
        (["batch_size: ["], "a.yaml"),
        ([""], "a.yaml"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, lines: list[str], named: str) -> None:
    assert named in refused("train", "--config", str(write_yaml(tmp_path / "a.yaml", lines)))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "nothing.yaml: No such file" in refused("train", "--config", str(tmp_path / "nothing.yaml"))
    assert str(tmp_path) in refused("train", "--config", str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: not YAML" in refused("train", "--config", str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(("recipe", "subcommand"), SECTIONS, ids=[f"{path.stem}-{name}" for path, name in SECTIONS])
def test_the_recipes_parse(recipe: Path, subcommand: str) -> None:
    config = parse(COMMAND_OF[subcommand], "--config", str(recipe))
    for name, value in yaml.safe_load(recipe.read_text())[subcommand].items():
        assert getattr(config, name) == value


def test_both_recipes_are_there() -> None:
    assert {"default.yaml", "nano.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("subcommand", yaml.safe_load(DEFAULT_RECIPE.read_text()))
def test_the_default_recipe_is_the_default(subcommand: str) -> None:
    default, written = parse(subcommand), parse(subcommand, "--config", str(DEFAULT_RECIPE))
    for field in dataclasses.fields(CONFIGS[subcommand]):
        if (subcommand, field.name) == ("benchmark", "checkpoint_dir"):
            continue  # the one that the recipe trained, not the bundled nano
        if getattr(default, field.name) is not None:  # None is the corpus's own split, which the recipe writes out
            assert getattr(written, field.name) == getattr(default, field.name), field.name


def test_the_recipe_of_nano_is_written_out_and_the_default() -> None:
    written = yaml.safe_load(NANO_RECIPE.read_text())["pretrain"]
    paths = {"output_dir", "digits_dir", "sentences_manifest"}
    assert written == {
        field.name: field.default for field in dataclasses.fields(PretrainConfig) if field.name not in paths
    }


def test_the_published_recipe() -> None:
    """What the original states; see the design."""
    config = parse("train", "--config", str(DEFAULT_RECIPE))
    assert config == TrainConfig(
        speech_encoder="ibm-granite/granite-speech-3.3-2b",
        language_model="SmallDoge/Doge-320M-Checkpoint",
        prompt_template="transcribe the following audio: ",
        adapter_type="mlp",
        adapter_hidden_dim=512,
        train_language_model="none",
        batch_size=16,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=100,
        max_grad_norm=1.0,
        epochs=1.0,
        eval_steps=100,
        eval_samples=200,
        patience=2,
    )


def test_a_list_takes_all_that_follows_its_flag() -> None:
    config = parse("download", "librispeech", "--splits", "dev-clean", "test-clean", "--keep_archives")
    assert (config.corpora, config.splits, config.keep_archives) == (["librispeech"], ["dev-clean", "test-clean"], True)
    assert parse("download", "--splits", "7", "--", "fsdd").splits == ["7"]
    assert parse("download", "--splits", "--list").splits == []


def test_every_corpus_is_named_by_the_help(command: Command) -> None:
    details = " ".join(command("process", "--help").out)
    assert [name for name in CORPORA if name not in details] == []
