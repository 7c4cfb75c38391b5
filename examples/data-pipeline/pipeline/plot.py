"""Monthly means of each station as a chart, once to look at (PNG) and once to print (SVG)."""

import json
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "data-pipeline"  # Else the names of clip paths are random.

from matplotlib import pyplot as plt  # noqa: E402

COLOURS = ("#2a6f97", "#6a994e", "#7f5539")


def draw(summary: list[dict]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for station, colour in zip(summary, COLOURS, strict=False):
        months = [month.partition("-")[2] for month in station["months"]]
        means = [month["mean_c"] for month in station["months"].values()]
        axes.plot(months, means, marker="o", color=colour, label=f"{station['name']} ({station['altitude_m']} m)")
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(title="Mean temperature by month, 2024", xlabel="month", ylabel="°C")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    summary_path, png_path, svg_path = sys.argv[1:]
    with open(summary_path, encoding="utf-8") as file:
        figure = draw(json.load(file))
    figure.savefig(png_path, dpi=120)
    figure.savefig(svg_path, metadata={"Date": None})  # A date would make each run's bytes new.
