"""Clean readings -> figures for each station, and for each of its months."""

import json
import sys

import pandas as pd


def figures(readings: pd.DataFrame) -> dict[str, object]:
    temperature = readings["temperature_c"]
    return {
        "readings": len(readings),
        "mean_c": round(float(temperature.mean()), 2),
        "coldest_c": float(temperature.min()),
        "warmest_c": float(temperature.max()),
        "rain_mm": round(float(readings["rain_mm"].sum()), 1),
    }


def summarise(readings: pd.DataFrame, stations: pd.DataFrame) -> list[dict[str, object]]:
    months = readings["day"].str.slice(0, 7)
    summary = []
    for station in stations.sort_values("altitude_m").itertuples():
        own = readings["station"] == station.station
        by_month = {month: figures(group) for month, group in readings[own].groupby(months[own])}
        summary.append(
            {"name": station.name, "altitude_m": station.altitude_m, **figures(readings[own]), "months": by_month}
        )
    return summary


if __name__ == "__main__":
    readings_path, stations_path, output_path = sys.argv[1:]
    summary = summarise(pd.read_csv(readings_path), pd.read_csv(stations_path))
    with open(output_path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(summary, file, indent=2, sort_keys=True)
        file.write("\n")
