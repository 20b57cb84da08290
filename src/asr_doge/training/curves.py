"""Draw a run: loss, learning rate and error rates by step, and the worst hypotheses.

Promises: `curves.png` and `curves.html` in the run's folder, both self-contained, to be opened without a network. It
draws what the Trainer logged and computes nothing.
"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.training.evaluation import Hypothesis

PNG_NAME, HTML_NAME = "curves.png", "curves.html"
SHOWN_HYPOTHESES = 50

_PANELS: Mapping[str, tuple[tuple[str, str, float], ...]] = {
    "loss": (("loss", "training", 1.0), ("eval_loss", "dev", 1.0)),
    "learning rate": (("learning_rate", "adapter", 1.0),),
    "gradient norm": (("grad_norm", "before clipping", 1.0),),
    "error rate, %": (("eval_wer", "WER", 100.0), ("eval_cer", "CER", 100.0)),
}
"""Title of each panel, and its lines: name in the log, label, factor."""
_LOGARITHMIC = ("loss", "gradient norm")
"""Panels of values that fall by orders of magnitude in the first steps, and would look flat afterwards."""


def draw_curves(
    folder: Path, log_history: Sequence[Mapping[str, Any]], hypotheses: Sequence[Hypothesis], begin: int = 0
) -> None:
    """Write the picture and the page.

    Args:
        folder: of the run.
        log_history: the Trainer's.
        hypotheses: of the last evaluation, worst first.
        begin: step after which an evaluation can be the best, as of `KeepBest`.

    Raises:
        DataError: the folder cannot be written to.
    """
    figure = _figure(log_history, begin)
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    FigureCanvasSVG(figure).print_svg(svg)
    write_atomically(folder / PNG_NAME, png.getvalue())
    drawing = svg.getvalue().decode()
    page = _PAGE.format(
        name=escape(folder.resolve().name), drawing=drawing[drawing.index("<svg") :], rows=_rows(hypotheses)
    )
    write_atomically(folder / HTML_NAME, page.encode("utf-8", "backslashreplace"))


def _figure(log_history: Sequence[Mapping[str, Any]], begin: int) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    judged = [entry for entry in log_history if "eval_cer" in entry and entry["step"] > begin]
    best = min(judged, key=lambda entry: entry["eval_cer"], default=None)
    for axes, (title, lines) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
        for name, label, factor in lines:
            points = [(entry["step"], factor * entry[name]) for entry in log_history if name in entry]
            axes.plot([step for step, _ in points], [value for _, value in points], marker=".", label=label)
        if title in _LOGARITHMIC:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if best is not None:
            axes.axvline(best["step"], color="black", linestyle=":", linewidth=1, label="best checkpoint")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _rows(hypotheses: Sequence[Hypothesis]) -> str:
    return "\n".join(
        f"<tr><td>{escape(one.id)}</td><td>{100 * one.cer:.1f}</td><td>{100 * one.wer:.1f}</td>"
        f"<td>{escape(one.reference)}</td><td>{escape(one.hypothesis)}</td></tr>"
        for one in hypotheses[:SHOWN_HYPOTHESES]
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{name}: curves</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .5rem; text-align: left; vertical-align: top; }}
</style>
<h1>{name}</h1>
{drawing}
<h2>Dev utterances, the worst first</h2>
<table>
<tr><th>id</th><th>CER %</th><th>WER %</th><th>reference</th><th>hypothesis</th></tr>
{rows}
</table>
</html>
"""
