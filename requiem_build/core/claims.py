"""Outputs and who claims them: no path is made twice, inside another output, or where it must not be."""

from __future__ import annotations

from collections.abc import Mapping

from . import paths
from .documents import Place
from .drafts import Draft, workspace_pattern
from .errors import RequiemError
from .paths import BadPath, quoted
from .patterns import is_pattern, unescape
from .sources import Outputs


def output_path(draft: Draft, text: str, place: Place, what: str = "output") -> str:
    """A path that the step makes, workspace-relative, still escaped as a pattern is. Raises ManifestError."""
    try:
        if text.startswith(("!", "@")):
            raise BadPath(f"begins with {text[0]}: outputs are paths and patterns")
        if is_pattern(text):
            path = workspace_pattern(text, draft.step.folder, place).text
        else:
            path = paths.resolve(text, draft.step.folder)
        if path == paths.ROOT:
            raise BadPath("is the whole workspace")
        if paths.is_reserved(path):
            raise BadPath("is a reserved path: .git, .requiem and .cas are not for outputs")
    except BadPath as error:
        raise place.error(f"{what} {quoted(text)} of step {quoted(draft.step.name)} {error}") from error
    return path


def check_outputs(drafts: Mapping[str, Draft], outputs: Outputs) -> list[str]:
    """Refuses outputs that two instances claim. Gives warnings about those that some file systems take for one."""
    known: dict[str, tuple[str, Place]] = {}
    folded: dict[str, str] = {}
    warnings: list[str] = []
    for name, draft in drafts.items():
        for path, place in draft.output_paths():
            plain = path.removesuffix("/")
            if plain in known:
                raise _twice(plain, name, place, *known[plain])
            known[plain] = (name, place)
            other = folded.setdefault(paths.folded(plain), plain)
            if other != plain:
                warnings.append(
                    f"outputs {quoted(other)} and {quoted(plain)} collide"
                    " on case-insensitive or normalising file systems"
                )
    for name, draft in drafts.items():
        for path, place in draft.output_paths():
            _check_output(path, name, place, known, outputs)
    return warnings


def _check_output(path: str, name: str, place: Place, known: Mapping[str, tuple[str, Place]], outputs: Outputs) -> None:
    plain = path.removesuffix("/")
    for above in paths.ancestors(plain):
        if above in known:
            other, first = known[above]
            inside = "the directory output" if above in outputs.directories else "the output"
            raise place.error(
                f"output {quoted(path)} of step {quoted(name)} lies inside"
                f" {inside} {quoted(above)} of step {quoted(other)}",
                facts=[("first", _where(first))],
            )
    if not is_pattern(path) and not path.endswith("/"):
        maker = outputs.pattern_maker(unescape(path))
        if maker is not None and maker != name:
            raise place.error(f"steps {quoted(maker)} and {quoted(name)} both make {quoted(path)}: one by a pattern")


def _twice(path: str, name: str, place: Place, other: str, first: Place) -> RequiemError:
    if name == other:
        return place.error(f"step {quoted(name)} names the output {quoted(path)} twice")
    return place.error(
        f"steps {quoted(other)} and {quoted(name)} both make {quoted(path)}", facts=[("first", _where(first))]
    )


def _where(place: Place) -> str:
    return dict(place.error("").facts)["manifest"]
