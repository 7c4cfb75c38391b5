"""docs/performance.md is written by several programs, each its own section between two comments."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def write_section(name: str, text: str) -> None:
    """Replaces a section of the page, or adds it at the end."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    before, found, rest = page.partition(begin)
    after = rest.partition(end)[2] if found else ""
    if not found and before and not before.endswith("\n\n"):
        before += "\n"
    PAGE.write_text(before + begin + text + end + after, encoding="utf-8")
