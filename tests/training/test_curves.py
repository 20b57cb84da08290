"""What a run leaves to be looked at: curves, hypotheses, card and record."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import EvalPrediction

from asr_doge.data.manifest import Utterance
from asr_doge.models import LoadedModel, load_model
from asr_doge.training.card import CARD_NAME
from asr_doge.training.curves import draw_curves
from asr_doge.training.evaluation import Evaluation, Hypothesis
from asr_doge.training.record import read_record
from asr_doge.training.training import train
from tests.training.conftest import Settings


def test_a_run_shows_what_it_did(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere there is no bar
    result = train(settings(tmp_path / "run", epochs=1, eval_steps=3, save_steps=3, eval_samples=2))
    folder = tmp_path / "run"
    bar = r"3/3 \[\d\d:\d\d<\d\d:\d\d, .*loss=\d+\.\d+, lr=\d\.\de-\d+, audio=\d+ s/s\]"  # `<` and the time left
    assert re.search(bar, capsys.readouterr().err)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "curves.html").read_text()
    heard = [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]
    assert [line["id"][:4] for line in heard] == ["dev-", "dev-"]
    record = read_record(folder) or {}
    assert record["result"]["dev_cer"] == result.dev_cer
    assert record["data"]["train"]["utterances"] == 12
    assert record["machine"]["versions"]["torch"] == str(torch.__version__)
    for checkpoint in (result.best_dir, result.final_dir):
        card = (checkpoint / CARD_NAME).read_text()
        assert f"{100 * result.dev_cer:.2f} %, on 2 utterances" in card
        assert record["data"]["train"]["fingerprint"] in card
        assert "(licence: see there)" in card
        load_model(checkpoint, device="cpu")


def test_the_page_is_whole_in_itself_and_shows_texts_as_they_are(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0},
        {"step": 2, "eval_loss": 1.0, "eval_wer": 0.5, "eval_cer": 0.25},
    ]
    draw_curves(tmp_path, log, [Hypothesis("a", "<b>said</b> & done", "{heard}", 1.0, 0.5)])
    page = (tmp_path / "curves.html").read_text()
    assert "&lt;b&gt;said&lt;/b&gt; &amp; done</td><td>{heard}</td>" in page
    for outside in ('src="http', 'href="http', "<script", "@import"):
        assert outside not in page


def test_the_best_checkpoint_is_one_of_this_dev_set(tmp_path: Path) -> None:
    """The dotted line, as matplotlib writes it into the drawing, is at the first evaluation that counts."""
    log = [{"step": step, "eval_cer": cer, "eval_wer": cer} for step, cer in ((2, 0.1), (4, 0.5), (6, 0.6))]
    lines = []
    for begin in (0, 2, 4, 6):
        draw_curves(tmp_path, log, [], begin)
        page = (tmp_path / "curves.html").read_text()
        lines.append(re.findall(r'd="M ([\d.]+) [^"]*"[^>]*stroke-dasharray: 1,1.65', page))
    assert all(lines[:3])
    assert lines[3] == []
    assert float(lines[0][0]) < float(lines[1][0]) < float(lines[2][0])


def test_languages_are_told_apart(assembled: LoadedModel) -> None:
    texts = [("a", "the fox", "the fox", "en"), ("b", "the dog", "the", "de")]
    evaluation = Evaluation(
        assembled.processor, [Utterance(id_, Path(id_), said, said, 1.0, None, code) for id_, said, _, code in texts]
    )
    said, heard = (assembled.processor(text=[text[index] for text in texts])["labels"].numpy() for index in (1, 2))
    metrics = evaluation(EvalPrediction(predictions=heard, label_ids=said))
    assert (metrics["wer"], metrics["wer_en"], metrics["wer_de"]) == pytest.approx((0.25, 0.0, 0.5))
    assert [hypothesis.id for hypothesis in evaluation.hypotheses] == ["b", "a"]
