"""Readings as they came -> one row a station and day, in Celsius, without doubles and impossible values."""

import sys

import pandas as pd

POSSIBLE_C = (-60.0, 60.0)


def clean(readings: pd.DataFrame, stations: pd.DataFrame) -> pd.DataFrame:
    readings["station"] = readings["station"].str.strip().str.lower()
    readings["temperature"] = pd.to_numeric(readings["temperature"], errors="coerce")
    impossible = ~readings["temperature"].between(-999, 200)
    readings.loc[impossible, "temperature"] = None
    fahrenheit = readings["unit"] == "F"
    readings.loc[fahrenheit, "temperature"] = (readings.loc[fahrenheit, "temperature"] - 32) * 5 / 9
    known = readings["temperature"].between(*POSSIBLE_C) & readings["station"].isin(stations["station"])
    tidy = readings[known].drop_duplicates(["station", "day"]).sort_values(["station", "day"])
    tidy["temperature_c"] = tidy["temperature"].round(1)
    return tidy[["station", "day", "temperature_c", "rain_mm"]]


if __name__ == "__main__":
    readings_path, stations_path, output_path = sys.argv[1:]
    tidy = clean(pd.read_csv(readings_path), pd.read_csv(stations_path))
    tidy.to_csv(output_path, index=False, lineterminator="\n")
