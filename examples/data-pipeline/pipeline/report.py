"""Figures and chart -> one HTML page that stands alone."""

import html
import json
import sys

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Weather of 2024</title>
<style>
  body {{ font-family: sans-serif; max-width: 46em; margin: 2em auto; color: #222 }}
  table {{ border-collapse: collapse }}
  th, td {{ padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd }}
  th:first-child, td:first-child {{ text-align: left }}
  svg {{ width: 100%; height: auto }}
</style>
<h1>Weather of 2024</h1>
<p>{readings} readings of {stations} stations were fit for use.</p>
<table>
<tr><th>station<th>altitude (m)<th>mean (°C)<th>coldest<th>warmest<th>rain (mm)</tr>
{rows}
</table>
{chart}
</html>
"""


def row(station: dict) -> str:
    keys = ("altitude_m", "mean_c", "coldest_c", "warmest_c", "rain_mm")
    cells = "".join(f"<td>{station[key]}" for key in keys)
    return f"<tr><td>{html.escape(station['name'])}{cells}</tr>"


if __name__ == "__main__":
    summary_path, chart_path, output_path = sys.argv[1:]
    with open(summary_path, encoding="utf-8") as file:
        summary = json.load(file)
    with open(chart_path, encoding="utf-8") as file:
        chart = file.read()
    page = PAGE.format(
        readings=sum(station["readings"] for station in summary),
        stations=len(summary),
        rows="\n".join(map(row, summary)),
        chart=chart[chart.index("<svg") :],
    )
    with open(output_path, "w", encoding="utf-8", newline="\n") as file:
        file.write(page)
