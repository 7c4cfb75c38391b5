"""One Markdown file -> one HTML page, and the facts that the index shows of it.

The file begins with lines such as `title: ...`, `summary: ...` and `order: ...`, then an empty line.
"""

import json
import sys
from pathlib import Path

import markdown
from filling import fill
from markupsafe import Markup

EXTENSIONS = ("meta", "fenced_code", "codehilite", "tables", "toc")

if __name__ == "__main__":
    source, html_path, facts_path = sys.argv[1:]
    converter = markdown.Markdown(extensions=EXTENSIONS, extension_configs={"toc": {"toc_depth": "2-3"}})
    body = converter.convert(Path(source).read_text(encoding="utf-8"))
    facts = {key: " ".join(lines) for key, lines in converter.Meta.items()}
    facts["path"] = Path(html_path).name
    fill("page.html", html_path, **facts, body=Markup(body), contents=Markup(converter.toc))
    Path(facts_path).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
