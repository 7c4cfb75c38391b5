"""The site's own style, then the colours of its code."""

import sys
from pathlib import Path

from pygments.formatters import HtmlFormatter

if __name__ == "__main__":
    source, output_path = sys.argv[1:]
    colours = HtmlFormatter(style="friendly").get_style_defs(".codehilite")
    Path(output_path).write_text(Path(source).read_text(encoding="utf-8") + "\n" + colours + "\n", encoding="utf-8")
