"""A process that comes of one that has transcribed transcribes too: what a server's workers do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr_doge.audio import Voice, synthesize
from tests.speech import write_wav

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("forked")
    path = write_wav(folder / "a.wav", synthesize("one two three", Voice()))
    threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    threads["OMP_WAIT_POLICY"] = "passive"  # else they spin for what a busy machine does not give them
    program = [sys.executable, "-m", "tests.inference.forked", str(path), str(folder / "texts")]
    subprocess.run(program, check=True, timeout=900, cwd=Path(__file__).parents[2], env=threads)
    return dict(json.loads((folder / "texts").read_text()))


@pytest.mark.parametrize(
    "way",
    [
        "os.fork",
        "os.fork, loaded there",
        "os.fork twice",
        "multiprocessing, fork",
        "concurrent.futures, fork",
        "multiprocessing, spawn",
        "here again",
    ],
)
def test_the_text_is_the_same_in_another_process(texts: dict[str, str], way: str) -> None:
    assert texts["here"] == "one two three"
    assert texts[way] == texts["here"]
