"""Going on with an interrupted run, and refusing to go on with another than was interrupted.

Promises: `latest` is the newest checkpoint that was written whole and led to where the run stood, not one that was left
behind by going back to an earlier one; a run that was killed before its first one starts again; a run is resumed only
with the model, data and settings that the checkpoint was written under, or the difference is named.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import PreTrainedConfig
from transformers.trainer import OPTIMIZER_NAME_BIN
from transformers.trainer_utils import sort_checkpoints

from asr_doge.errors import ConfigError
from asr_doge.models.checkpoints import find_model
from asr_doge.models.encoders.loading import settings
from asr_doge.models.frozen_parts import load_asr_doge_config
from asr_doge.training.record import read_record

COMPLETE_NAME = "complete"
"""An empty file in a `checkpoint-N` folder, written after all others."""

MAY_CHANGE = frozenset(
    (
        *("data_dir", "train_manifest", "dev_manifest", "features_dir", "output_dir", "device", "num_workers"),
        *("resume_from", "allow_config_change", "plan", "max_unreadable", "gradient_accumulation_steps"),
        "fsdp",  # see `require_same_sharding`
        *("push_to_hub", "hub_model_id", "hub_private_repo"),
        *("wandb_project", "wandb_entity", "wandb_run_name", "no_wandb", "speech_encoder", "language_model"),
    )
)
"""Settings that say where things are, or how the same numbers are come by; what lies there is compared instead."""


@dataclass(frozen=True)
class Lineage:
    """Which checkpoints led to where a run stands.

    Attributes:
        run_id: of this process's steps; None of checkpoints that were written before there were ids.
        ancestors: ids of the processes before, each with the step that the next went on from.
    """

    run_id: str | None
    ancestors: tuple[tuple[str | None, int], ...] = ()

    @classmethod
    def going_on(cls, checkpoint: Path | None) -> "Lineage":
        """That of a process which begins now, from a checkpoint or from nothing."""
        if checkpoint is None:
            return cls(uuid4().hex)
        before, step = cls.of(read_record(checkpoint)), _step(checkpoint)
        passed = [(run_id, until) for run_id, until in before.ancestors if until <= step]
        return cls(uuid4().hex, (*passed, (before.run_id, step)))

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> "Lineage":
        """That of a record; an older version's has none."""
        ancestors = (record or {}).get("ancestors", ())
        return cls((record or {}).get("run_id"), tuple((run_id, until) for run_id, until in ancestors))

    def holds(self, checkpoint: Path) -> bool:
        """Whether a `checkpoint-N` folder is of it."""
        run_id, step = self.of(read_record(checkpoint)).run_id, _step(checkpoint)
        return run_id == self.run_id or any(run_id == earlier and step <= until for earlier, until in self.ancestors)

    def described(self) -> dict[str, Any]:
        """As a record has it."""
        return asdict(self)


def _step(checkpoint: Path) -> int:
    """0 where the folder is named otherwise than it was written."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def is_complete(folder: Path) -> bool:
    """Whether a `checkpoint-N` folder was written whole."""
    return (folder / COMPLETE_NAME).is_file()


def checkpoint_to_resume(resume_from: str | None, output_dir: Path) -> Path | None:
    """The folder that `--resume_from` means; None to start from the beginning.

    Raises:
        ConfigError: there is no such checkpoint, or one of another run that was not asked for.
    """
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))] if output_dir.is_dir() else []
    if resume_from is None:
        if folders:
            raise ConfigError(
                f"{output_dir} holds the checkpoints of another run: go on with it by --resume_from latest, or choose"
                " another --output_dir"
            )
        return None
    if resume_from == "latest":
        return _latest(folders, output_dir)
    if not is_complete(Path(resume_from)):
        raise ConfigError(f"--resume_from {resume_from}: not a checkpoint-N folder of a training run, or not whole")
    return Path(resume_from)


def _latest(folders: list[Path], output_dir: Path) -> Path | None:
    """The newest whole checkpoint of the run that the folder's record is of."""
    record = read_record(output_dir)
    if record is None and not any(is_complete(folder) for folder in folders):
        raise ConfigError(f"--resume_from latest: there is no checkpoint-N folder in {output_dir}")
    whole = [folder for folder in folders if is_complete(folder)]
    if record is not None and "run_id" in record:
        lineage = Lineage.of(record)
        whole = [folder for folder in whole if lineage.holds(folder)]
        if not whole and record["resumed_from"]:
            raise ConfigError(
                f"--resume_from latest: the run in {output_dir} has saved nothing since it went on from"
                f" {record['resumed_from']}: give that folder"
            )
    return whole[-1] if whole else None


def left_behind(checkpoint: Path | None, output_dir: Path) -> list[Path]:
    """Checkpoints of a run's folder that lie beyond the one that it goes on from."""
    if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():
        return []
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))]
    return [folder for folder in folders if is_complete(folder) and _step(folder) > _step(checkpoint)]


def remove_old(output_dir: Path, lineage: Lineage, keep: int, *, spare_left_behind: bool = False) -> None:
    """Remove all checkpoints but the newest `keep` of the run, and what a kill or a full disk left half written.

    Args:
        output_dir: the run's folder.
        lineage: of the run.
        keep: how many stay.
        spare_left_behind: keep the whole ones that the run has gone back from too, as long as it has saved none itself.
    """
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))] if output_dir.is_dir() else []
    whole = [folder for folder in folders if is_complete(folder)]
    own = [folder for folder in whole if lineage.holds(folder)]
    kept = [*own[-keep:], *(folder for folder in whole if spare_left_behind and folder not in own)]
    for folder in folders:
        if folder not in kept:
            (folder / COMPLETE_NAME).unlink(missing_ok=True)  # first: a folder half removed must not look whole
            shutil.rmtree(folder, ignore_errors=True)


def require_same_model(checkpoint: Path, config: PreTrainedConfig) -> None:
    """Refuse to put a checkpoint's weights and optimizer into another model than they were of.

    Raises:
        ConfigError: the flags give another model; the message names them.
        CheckpointError: the checkpoint has no usable config.json.
    """
    before = load_asr_doge_config(find_model(checkpoint))
    flags = [flag for flag, field in _MODEL_FLAGS.items() if getattr(before, field) != getattr(config, field)]
    parts = (
        ("speech_encoder", "encoder_config", "speech_encoder_fingerprint"),
        ("language_model", "text_config", "language_model_fingerprint"),  # no fingerprint in checkpoints of `full`
    )
    for flag, sub_config, fingerprint in parts:
        old, new = (settings(getattr(side, sub_config).to_dict()) for side in (before, config))
        if old != new or getattr(before, fingerprint) not in (None, getattr(config, fingerprint)):
            flags.append(flag)
    if flags:
        named = ", ".join(f"--{name}" for name in sorted(flags))
        raise ConfigError(
            f"--resume_from {checkpoint}: that run had another {named}; give what it had, or start a new run in another"
            " --output_dir"
        )


def require_same_sharding(checkpoint: Path, fsdp: bool) -> None:
    """Refuse to start the optimizer anew, since it is stored in one way with FSDP and in another without.

    Raises:
        ConfigError: the checkpoint was written with `--fsdp`, or without, and now it is the other.
    """
    if (checkpoint / OPTIMIZER_NAME_BIN).is_file() != fsdp:
        raise ConfigError(
            f"--resume_from {checkpoint}: that run was {'without' if fsdp else 'with'} --fsdp; give what it had"
        )


_MODEL_FLAGS = {
    **{name: name for name in ("adapter_type", "adapter_hidden_dim", "adapter_stack", "adapter_output_norm")},
    **{name: name for name in ("prompt_template", "train_language_model", "train_encoder", "train_encoder_layers")},
    "lora_*": "lora",
}
"""Flags that shape the model, and the field of `ASRDogeConfig` that each sets."""


def changes_since(checkpoint: Path, config: dict[str, Any], data: dict[str, Any], processes: int) -> list[str]:
    """What settings and data differ from those that a checkpoint was written under: what they were, and are now.

    Args:
        checkpoint: with the record of the process that wrote it; an older one is in the folder of its run, whose record
            is then taken.
        config: settings by name.
        data: what `describe_data` says of the manifests.
        processes: of the run now.
    """
    record = read_record(checkpoint) or read_record(checkpoint.parent)
    if record is None:
        return []
    before: dict[str, Any] = record["config"]
    may_change = MAY_CHANGE
    if config.get("batch_seconds") is not None:  # then it is how many batches make a step
        may_change = MAY_CHANGE - {"gradient_accumulation_steps"}
    processes_before = record["machine"]["processes"]
    changed = [
        f"--{name} {before[name]}, now {value}"
        for name, value in config.items()
        if name not in may_change and name in before and before[name] != value
    ]
    for split, now in data.items():
        then = record["data"][split]
        if then["fingerprint"] != now["fingerprint"]:
            changed.append(f"{then['utterances']:,} {split} utterances, now {now['utterances']:,} (or other ones)")
    if config.get("batch_seconds") is not None and processes_before != processes:
        # Each process reads batches of its own, so that a step is of other batches, and some would never be read.
        changed.append(f"{processes_before} processes, now {processes}, with --batch_seconds")
    return changed
