"""The facts of all pages -> the index, in the order that the pages ask for."""

import json
import sys
from pathlib import Path

from filling import fill

if __name__ == "__main__":
    *facts_paths, output_path = sys.argv[1:]
    pages = [json.loads(Path(path).read_text(encoding="utf-8")) for path in facts_paths]
    pages.sort(key=lambda page: (int(page["order"]), page["title"]))
    fill("index.html", output_path, pages=pages, title="tally")
