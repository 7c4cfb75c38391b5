"""Templates, filled: what every page of the site shares."""

import jinja2


def fill(template: str, output_path: str, **values: object) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader("templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    with open(output_path, "w", encoding="utf-8", newline="\n") as file:
        file.write(environment.get_template(template).render(values))
