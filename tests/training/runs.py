"""What a run left behind, to be compared; and runs in a process of their own, to be killed."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.optim.optimizer import register_optimizer_step_post_hook

from asr_doge.cli import main
from asr_doge.models import loading
from asr_doge.training.configuration import TrainConfig
from asr_doge.training.training import train
from tests.killing import kill_at_change
from tests.training.conftest import MAX_NEW_TOKENS

WEIGHTS = "model.safetensors"


def log_of(output_dir: Path) -> list[dict[str, Any]]:
    """What the run logged, without its timings."""
    last = max(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    entries = json.loads((last / "trainer_state.json").read_text())["log_history"]
    timings = ("runtime", "per_second", "flos")
    return [{name: value for name, value in entry.items() if not name.endswith(timings)} for entry in entries]


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def train_and_be_killed(config: TrainConfig, steps: int, writes: int) -> int:
    """Run in another process, which kills itself (SIGKILL) after so many steps and writes; its exit code.

    Args:
        config: of the run.
        steps: of the optimizer that this process makes.
        writes: to the run's folder after the last of them; 0 to be killed at the step itself.
    """
    context = multiprocessing.get_context("fork")  # which need not import the package anew
    process = context.Process(target=_train, args=(config, steps, writes))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def train_together(config: TrainConfig, processes: int = 2) -> None:
    """Run in several processes, which share the work as torchrun would have them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_train_one, args=(config, rank, processes, port)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes


def torchrun(arguments: list[str], folder: Path, processes: int = 2) -> str:
    """Run the command in several processes by torchrun's own launcher; what they printed to standard output.

    The launcher forks them, where `torchrun` would start Pythons that import everything anew.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        logs_specs=DefaultLogsSpecs(str(folder / "printed"), redirects=Std.ALL),
    )
    elastic_launch(launch, _run_command)(arguments)
    return "".join(path.read_text() for path in (folder / "printed").rglob("stdout.log"))


def _run_command(arguments: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # what this process was, before it was forked
    torch.set_num_threads(1)
    if code := main(arguments):
        raise SystemExit(code)


def _train_one(config: TrainConfig, rank: int, processes: int, port: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # what this process was, before it was forked
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    train(config)


def _train(config: TrainConfig, steps: int, writes: int) -> None:
    torch.set_num_threads(1)
    loading.MAX_NEW_TOKENS = MAX_NEW_TOKENS
    left = {"steps": steps, "writes": writes}

    def count_step(*_: object) -> None:
        left["steps"] -= 1
        if left["steps"] <= 0 and not writes:
            os.kill(os.getpid(), signal.SIGKILL)

    def is_last_write() -> bool:
        left["writes"] -= left["steps"] <= 0
        return left["steps"] <= 0 and left["writes"] <= 0

    register_optimizer_step_post_hook(count_step)
    kill_at_change(Path(config.output_dir), is_last_write)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(config)
