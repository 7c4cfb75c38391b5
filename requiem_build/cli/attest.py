"""`requiem attest`: say what was built of what, signed, so that others need not take our word."""

from __future__ import annotations

import json

import click

from ..core import canonical
from ..core.errors import IntegrityError, UsageError
from ..engine import attest as attesting
from ..engine.lineage import trace_back
from ..engine.options import Options
from ..engine.settings import load_settings
from ..engine.trust import keys_of, load_trust
from ..store.keys import LOCAL, Verifier
from .console import plain, write_bytes, write_err, write_out
from .globals import Globals
from .inspect import read_file
from .output import write_file
from .running import parse_sets


@click.command("attest")
@click.argument("targets", nargs=-1)
@click.option("-o", "--output", "output", help="A file instead of stdout.")
@click.option("--key", "key", help="The key that signs (default: that of [trust] sign, or your own).")
@click.option("--unsigned", "unsigned", is_flag=True, help="Only the statement, signed by nobody.")
@click.option("--profile", "profile", help="As it was built: [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="As it was built: NAME=VALUE.")
@click.option("--verify", "verify", metavar="FILE", help="Check an attestation against the files here.")
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[str, ...],
    output: str | None,
    key: str | None,
    unsigned: bool,
    profile: str | None,
    set_: tuple[str, ...],
    verify: str | None,
) -> int:
    """Write the provenance of what was built (in-toto, SLSA, DSSE), or verify one."""
    shared: Globals = context.obj
    if verify is not None:
        if targets or output or key or unsigned:
            raise UsageError("--verify stands alone")
        return _verify(shared, verify)
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=targets,
        profile=profile,
        sets=parse_sets(set_),
    )
    lineage = trace_back(options)
    if unsigned:
        content = canonical.encode(attesting.statement(lineage, options, None)) + b"\n"
    else:
        wished = lineage.site.settings.trust.get("sign")
        name = key or (wished if isinstance(wished, str) else LOCAL)
        content = attesting.attest(lineage, options, keys_of(shared.environment).signer(name))
    if output is None:
        write_bytes(content)
    else:
        write_file(shared, output, content)
    return 0


def _verify(shared: Globals, name: str) -> int:
    content = read_file(shared, name)
    keys = keys_of(shared.environment)
    trust = load_trust(load_settings(shared.environment).trust, None, shared.environment)
    known = keys.all()
    policy = trust.policy if trust is not None else None
    accept = frozenset(policy.accept if policy is not None else (key.key_id for key in known))
    verdict = attesting.verify(content, Verifier(known), accept, shared.start)
    if shared.json:
        document = {
            "ok": not verdict.problems,
            "problems": list(verdict.problems),
            "schema": "requiem.attest-verify/1",
            "signers": list(verdict.signers),
            "subjects": [{"name": path, "state": state} for path, state in verdict.subjects],
        }
        write_out(json.dumps(document, sort_keys=True, indent=2) + "\n")
        return IntegrityError.exit_code if verdict.problems else 0
    if verdict.problems:
        facts = [("wrong", plain(problem)) for problem in verdict.problems]
        raise IntegrityError(f"the attestation does not hold: {plain(verdict.problems[0])}", facts=facts)
    write_err(f"signed by {', '.join(map(plain, verdict.signers))}\n")
    for path, state in verdict.subjects:
        write_out(f"{plain(path)}  {state}\n")
    return 0
