"""What generation.py found: as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvit._cli import display


@dataclass(frozen=True)
class Result:
    """What one contender took in one cell: medians of its turns. None where the memory did not suffice."""

    batch: int
    context: int
    contender: str
    prompt_s: float | None
    step_s: float | None

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens of all sequences, behind the first ones."""
        return None if self.step_s is None else self.batch / self.step_s


def table(results: Sequence[Result]) -> str:
    """One line a cell and contender: the prompt's time, and tokens per second beside those of the first contender."""
    first = {(r.batch, r.context): r.tokens_per_s for r in reversed(results)}

    def shown(number: float | None, digits: int) -> str:
        return "-" if number is None else f"{number:.{digits}f}"

    rows = []
    for r in results:
        beside = first[r.batch, r.context]
        ratio = None if None in (r.tokens_per_s, beside) else r.tokens_per_s / beside
        times = [None if seconds is None else 1e3 * seconds for seconds in (r.prompt_s, r.step_s)]
        name = r.contender if r.step_s is not None else f"{r.contender}: out of memory"
        row = (shown(times[0], 1), shown(times[1], 3), shown(r.tokens_per_s, 1), shown(ratio, 2))
        rows.append((r.batch, r.context, name, *row))
    header = ("batch", "context", "attention", "prompt, ms", "step, ms", "tokens/s", f"of {results[0].contender}'s")
    return display.table(header, rows)


def plot(path: Path, results: Sequence[Result], title: str) -> None:
    """Write the picture, in the format that the file's suffix names: a panel for each batch, a line a contender."""
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(r.batch for r in results))
    figure = Figure(figsize=(4.5 * len(batches), 4.5), layout="constrained")
    for i, batch in enumerate(batches):
        axes = figure.add_subplot(1, len(batches), i + 1)
        for name in dict.fromkeys(r.contender for r in results):
            mine = [r for r in results if (r.batch, r.contender) == (batch, name) and r.step_s is not None]
            axes.plot([r.context for r in mine], [r.tokens_per_s for r in mine], marker="o", label=name)
        axes.set(
            xscale="log", xlabel="tokens of a prompt", ylabel="tokens/s", title=f"batch of {batch}", ylim=(0, None)
        )
        contexts = sorted({r.context for r in results})
        axes.set_xticks(contexts, list(map(str, contexts)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.axes[0].legend()
    figure.savefig(path, dpi=150)
