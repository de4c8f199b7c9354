"""The picture that the README shows: what a call costs over the number of stored invites."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# Else each run would name its parts anew, and every line of the file would differ.
matplotlib.rcParams["svg.hashsalt"] = "mod_invites"
matplotlib.rcParams["font.size"] = 9

from matplotlib import pyplot  # noqa: E402  after the choice of what it draws with

#: Colours that are told apart by everybody (Okabe and Ito).
STYLES = {
    "ours sqlite": ("#0072B2", "o", "-"),
    "ours postgresql": ("#56B4E9", "o", "-"),
    "ours prosody": ("#009E73", "o", "-"),
    "bare sqlite": ("#000000", ".", ":"),
    "bundled sql": ("#E69F00", "s", "--"),
    "bundled internal": ("#D55E00", "s", "--"),
    "bundled memory": ("#CC79A7", "s", "--"),
}
PANELS = {"create": "create_account", "get hit": "get", "get+use": "get, then :use()"}


def plot(samples: dict[tuple[str, int, str], list[float]], path: Path) -> None:
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(10, 3.4), sharey=True, layout="constrained")
    for axes, (operation, title) in zip(panels, PANELS.items()):
        for side, (colour, marker, line) in STYLES.items():
            points = sorted(
                (size, statistics.median(spent) / 1000)
                for (what, size, name), spent in samples.items() if (what, name) == (operation, side) and spent
            )
            if points:
                axes.plot(*zip(*points), label=side, color=colour, marker=marker, linestyle=line, markersize=4)
        axes.set(title=title, xscale="log", yscale="log", xlabel="stored invites")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms, median")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=4, frameon=False)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
