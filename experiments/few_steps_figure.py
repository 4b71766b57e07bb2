"""The picture of `bench_few_steps`: best so far against measured steps."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import DEVICE_COLOURS, FAINT, INK

_SEGUE = ("#ee7733", "#cc3311")


def few_steps_figure(rows: list[dict[str, Any]], goal: float, source: str) -> bytes:
    """PNG: median and quartiles over the cases, a line a method.

    Args:
        rows: of `bench_few_steps.bench`.
        goal: regret that is marked.
        source: what the times are, `simulated` or `emulated`.
    """
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    others = iter(DEVICE_COLOURS)
    for method in dict.fromkeys(row["method"] for row in rows):
        regret = 100 * np.array([row["regret"] for row in rows if row["method"] == method])
        ours = method.startswith("segue")
        colour = _SEGUE[method == "segue"] if ours else next(others, FAINT)
        steps = np.arange(1, regret.shape[1] + 1)
        low, middle, high = np.maximum(0.05, np.quantile(regret, (0.25, 0.5, 0.75), axis=0))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15 if ours else 0.06, linewidth=0)
        axes.plot(steps, middle, color=colour, linewidth=2.5 if ours else 1.3, label=method, zorder=3 if ours else 2)
    axes.axhline(100 * goal, color=INK, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.3, 1, 3, 10, 30, 100, 300], ["0.1", "0.3", "1", "3", "10", "30", "100", "300"])
    axes.set_xlim(1, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("measured steps")
    axes.set_ylabel(f"best so far over best known, % more ({source})")
    axes.set_title(
        "Costs that are off by up to 50 %: median and quartiles over the cases", loc="left", fontweight="bold"
    )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
