"""What all tests share: how hypothesis runs, and tiny models on disk, made once a session.

The process that only hands tests to workers reads this too, so what takes seconds to import is imported where needed.
"""

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.warm import warm_python

if TYPE_CHECKING:
    from asr_doge.models import LoadedModel

# Tiny models run faster on one thread, and on a busy machine several threads wait for each other for minutes. Read when
# torch is imported, here and in processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# No deadline: the first example of a test pays for imports and caches, and other work shares the machine.
settings.register_profile("local", deadline=None)
# On a gate the same examples every time, so that a red run is red again on one's own machine.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


ORDER = (
    *("scaling/test_ray_engine.py", "scaling/test_remote_decoding.py", "scaling/"),
    *("test_package_imports.py", "test_architecture_page.py", "text/", "audio/", "data/", "decoding/"),
    *("models/encoders/test_onnx.py", "models/test_export.py", "models/test_early_doge.py"),
    *("cli/test_demo.py", "cli/test_own_process.py", "cli/test_scripts.py", "training/", "models/", "cli/"),
    *("inference/", "serving/", "benchmark/", ""),
)
"""Beginnings of paths. Each of two processes gets half of the tests, and takes from the other's last ones in the end.
So one begins with the tests of clusters, which wait most, and goes on with many quick ones; the other begins with what
takes longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files so that all processes end together (`pytest -n --dist worksteal`)."""
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(root).as_posix()
        return next(number for number, beginning in enumerate(ORDER) if path.startswith(beginning))

    items.sort(key=rank)


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Import without garbage collections: what is imported stays, and looking through it took a fifth of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: each took a fifth of a tiny training run to look at it."""
    gc.enable()
    leave_out_of_collections()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """And what each file of tests leaves behind."""
    yield
    if nextitem is None or nextitem.path != item.path:
        leave_out_of_collections()


def leave_out_of_collections() -> None:
    """All that exists now, once what is garbage already has been collected."""
    gc.collect()
    gc.freeze()


# In a forked process too: to look at an object there is to copy its page of memory.
os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python that has the package imported already, to start commands and scripts with."""
    with warm_python(tmp_path_factory.mktemp("python")) as executable:
        yield executable


@pytest.fixture(scope="session")
def granite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full Granite Speech checkpoint, language model included."""
    from tests.models import tiny

    folder = tmp_path_factory.mktemp("models") / "granite"
    tiny.granite_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full Whisper checkpoint, decoder included."""
    from tests.models import tiny

    folder = tmp_path_factory.mktemp("models") / "whisper"
    tiny.whisper_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def doge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Doge checkpoint with its tokenizer."""
    from tests.models import tiny

    folder = tmp_path_factory.mktemp("models") / "doge"
    return tiny.save_language_model(tiny.doge_model(len(tiny.tokenizer())), folder)


@pytest.fixture(scope="session")
def assembled(granite_folder: Path, doge_folder: Path) -> "LoadedModel":
    """An untrained model in float64, where equal means equal; not to be changed by a test."""
    import torch

    from asr_doge.models import assemble_model
    from tests.models import tiny

    loaded = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64)
    tiny.randomize(loaded.model.adapter, seed=1)
    return loaded


@pytest.fixture(scope="session")
def checkpoint_folder(assembled: "LoadedModel", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`assembled`, saved; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("checkpoints") / "best"
    assembled.save(folder)
    return folder


@pytest.fixture(scope="session")
def head_folder(whisper_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CTC head with random weights, for 28 characters, on that Whisper at clip length."""
    from asr_doge.models import CTCHeadConfig
    from asr_doge.models.checkpoints import find_model
    from asr_doge.models.ctc_head import CTCHead, CTCHeadSettings
    from asr_doge.models.ctc_head_checkpoints import save_head
    from asr_doge.models.encoders.loading import encoder_fingerprint
    from tests.models import tiny

    folder = tmp_path_factory.mktemp("heads") / "head"
    reference, config = find_model(whisper_folder), tiny.whisper_model().config
    config.encoder_window = "clip"
    shape = CTCHeadSettings(list(" abcdefghijklmnopqrstuvwxyz'"), hidden_dim=8, layers=2, dropout=0.5)
    head = CTCHead(shape, config.d_model)
    tiny.randomize(head, seed=4)
    head_config = CTCHeadConfig(
        encoder_config=config,
        speech_encoder=reference.pointer,
        speech_encoder_fingerprint=encoder_fingerprint(reference, config),
        ctc_head=shape.values(),
    )
    save_head(folder, head_config, head.state_dict())
    return folder
