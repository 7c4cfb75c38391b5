"""Does every link inside the site lead somewhere? Fails with a line for each that does not."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urlsplit


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == "href" and value:
                self.links.append(value)


def broken(pages: dict[str, Page], files: set[str]) -> list[str]:
    found = []
    for name, page in sorted(pages.items()):
        for link in page.links:
            target, anchor = urldefrag(link)
            target = target or name
            if urlsplit(link).scheme:
                continue
            if target not in files or (anchor and anchor not in pages[target].anchors):
                found.append(f"{name}: {link}")
    return found


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    pages = {path.name: Page(path) for path in paths if path.suffix == ".html"}
    problems = broken(pages, {path.name for path in paths})
    print(f"{sum(len(page.links) for page in pages.values())} links in {len(pages)} pages, {len(problems)} broken")
    sys.exit("\n".join(problems) or None)
