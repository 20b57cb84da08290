"""Resume an interrupted run, and refuse to resume it with another model, data or settings.

Promises: `latest` is the newest complete checkpoint of the run's current history, not one that was left behind by going
back to an earlier one; a run killed before its first checkpoint starts again; a run is resumed only with the model,
data and settings of its checkpoint, or the difference is named.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
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
"""Settings that do not change the result, such as paths; the content at those paths is compared instead."""


@dataclass(frozen=True)
class Lineage:
    """The checkpoints in the history of a run.

    Attributes:
        run_id: of this process's steps; None for checkpoints from before there were ids.
        ancestors: ids of the processes before, each with the step from which the next continued.
    """

    run_id: str | None
    ancestors: tuple[tuple[str | None, int], ...] = ()

    @classmethod
    def going_on(cls, checkpoint: Path | None) -> "Lineage":
        """Lineage of a process that starts now, from a checkpoint or from nothing."""
        if checkpoint is None:
            return cls(uuid4().hex)
        before, step = cls.of(read_record(checkpoint)), _step(checkpoint)
        passed = [(run_id, until) for run_id, until in before.ancestors if until <= step]
        return cls(uuid4().hex, (*passed, (before.run_id, step)))

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> "Lineage":
        """Lineage in a record; that of an older version has no id."""
        ancestors = (record or {}).get("ancestors", ())
        return cls((record or {}).get("run_id"), tuple((run_id, until) for run_id, until in ancestors))

    def holds(self, checkpoint: Path) -> bool:
        """Whether a `checkpoint-N` folder is part of it."""
        run_id, step = self.of(read_record(checkpoint)).run_id, _step(checkpoint)
        return run_id == self.run_id or any(run_id == earlier and step <= until for earlier, until in self.ancestors)


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint, from its folder's name; 0 if the folder was renamed."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def is_complete(folder: Path) -> bool:
    """Whether a `checkpoint-N` folder was completely written."""
    return (folder / COMPLETE_NAME).is_file()


def checkpoint_to_resume(resume_from: str | None, output_dir: Path) -> Path | None:
    """The folder that `--resume_from` names; None to start from the beginning.

    Raises:
        ConfigError: there is no such checkpoint, or it belongs to another run that was not requested.
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
    """The newest complete checkpoint of the run in the folder's record."""
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
    """Checkpoints of a run's folder that are later than the one that is resumed."""
    if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():
        return []
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))]
    return [folder for folder in folders if is_complete(folder) and _step(folder) > _step(checkpoint)]


def remove_old(output_dir: Path, lineage: Lineage, keep: int, *, spare_left_behind: bool = False) -> None:
    """Remove all checkpoints except the newest `keep` of the run, and incomplete ones left by a kill or a full disk.

    Args:
        output_dir: the run's folder.
        lineage: of the run.
        keep: number of checkpoints to keep.
        spare_left_behind: also keep complete ones that were left behind, as long as the run has saved none itself.
    """
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))] if output_dir.is_dir() else []
    whole = [folder for folder in folders if is_complete(folder)]
    own = [folder for folder in whole if lineage.holds(folder)]
    kept = [*own[-keep:], *(folder for folder in whole if spare_left_behind and folder not in own)]
    for folder in folders:
        if folder not in kept:
            (folder / COMPLETE_NAME).unlink(missing_ok=True)  # first: a half-removed folder must not look complete
            shutil.rmtree(folder, ignore_errors=True)


def require_same_model(checkpoint: Path, config: PreTrainedConfig) -> None:
    """Refuse to load a checkpoint's weights and optimizer into another model.

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
    """Refuse to change sharding, since the optimizer is stored differently with and without FSDP and would be lost.

    Raises:
        ConfigError: only one of the checkpoint and this run uses `--fsdp`.
    """
    if (checkpoint / OPTIMIZER_NAME_BIN).is_file() != fsdp:
        raise ConfigError(
            f"--resume_from {checkpoint}: that run was {'without' if fsdp else 'with'} --fsdp; give what it had"
        )


_MODEL_FLAGS = {
    **{name: name for name in ("adapter_type", "adapter_hidden_dim", "adapter_stack", "adapter_output_norm")},
    **{name: name for name in ("prompt_template", "train_language_model", "train_encoder", "train_encoder_layers")},
    "vocabulary": "vocabulary_ids",
    "lora_*": "lora",
}
"""Flags that determine the model, and the field of `ASRDogeConfig` that each sets."""


def changes_since(checkpoint: Path, config: dict[str, Any], data: dict[str, Any], processes: int) -> list[str]:
    """Settings and data that differ from those of a checkpoint, with their old and new values.

    Args:
        checkpoint: with the record of the process that wrote it; an older one has none, and the record of its run's
            folder is used.
        config: settings by name.
        data: from `describe_data`.
        processes: number of processes now.
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
        # Each process reads its own batches, so steps would have other batches and some would never be read.
        changed.append(f"{processes_before} processes, now {processes}, with --batch_seconds")
    return changed
