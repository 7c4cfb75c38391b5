"""The steps of `graph.py`, written for other tools: each as its own documentation would have it, all in one package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from graph import Step


def write_doit(folder: Path, steps: Sequence[Step]) -> None:
    """A generator of tasks; the state lies in sqlite, the fastest of its databases at these sizes."""
    rows = [[f"s{number}", step.inputs, step.output, step.command] for number, step in enumerate(steps)]
    (folder / "plan.json").write_text(json.dumps(rows))
    (folder / "dodo.py").write_text(
        "import json\n"
        "DOIT_CONFIG = {'backend': 'sqlite3', 'verbosity': 0, 'reporter': 'error-only'}\n"
        "def task_step():\n"
        "    for name, inputs, output, command in json.load(open('plan.json')):\n"
        "        yield {'name': name, 'file_dep': inputs, 'targets': [output], 'actions': [command]}\n"
    )


def write_task(folder: Path, steps: Sequence[Step]) -> None:
    """Checksums decide (its default); a task that several need runs once."""
    made = names(steps)
    lines = ["version: '3'", "tasks:", f"  all:\n    deps: {json.dumps(list(made.values()))}"]
    for step, name in zip(steps, made.values(), strict=True):
        lines.append(
            f"  {name}:\n    run: once\n    deps: {json.dumps(needs(step, made))}\n"
            f"    sources: {json.dumps(step.inputs)}\n    generates: {json.dumps([step.output])}\n"
            f"    cmds: {json.dumps([step.command])}"
        )
    (folder / "Taskfile.yml").write_text("\n".join([*lines, ""]))


def write_wireit(folder: Path, steps: Sequence[Step]) -> None:
    made = names(steps)
    wireit: dict[str, object] = {"all": {"dependencies": list(made.values())}}
    for step, name in zip(steps, made.values(), strict=True):
        wireit[name] = {
            "command": step.command,
            "files": sources(step, made),
            "output": [step.output],
            "dependencies": needs(step, made),
        }
    package = {"name": "benchmark", "version": "0.0.0", "private": True, "wireit": wireit}
    package["scripts"] = dict.fromkeys(wireit, "wireit")
    (folder / "package.json").write_text(json.dumps(package))


def write_moon(folder: Path, steps: Sequence[Step]) -> None:
    made = names(steps)
    lines = ["language: 'unknown'", "tasks:"]
    for step, name in zip(steps, made.values(), strict=True):
        lines.append(
            f"  {name}:\n    script: {json.dumps(step.command)}\n"
            f"    deps: {json.dumps([f'~:{need}' for need in needs(step, made)])}\n"
            f"    inputs: {json.dumps([f'/{path}' for path in step.inputs])}\n"
            f"    outputs: {json.dumps([f'/{step.output}'])}\n    options: {{ runFromWorkspaceRoot: true }}"
        )
    lines.append(
        f"  all:\n    command: 'noop'\n    inputs: []\n    deps: {json.dumps([f'~:{n}' for n in made.values()])}"
    )
    (folder / "moon.yml").write_text("\n".join([*lines, ""]))
    (folder / ".moon").mkdir()
    workspace = "projects: { root: '.' }\nvcs: { client: git, defaultBranch: master }\ntelemetry: false\n"
    (folder / ".moon" / "workspace.yml").write_text(workspace)
    commit(folder, "node_modules\n.moon/cache\nout\n")


def write_turbo(folder: Path, steps: Sequence[Step]) -> None:
    """Each step a task of the root package, run by `bin/npm`: npm itself takes a fifth of a second for each."""
    made = names(steps)
    tasks: dict[str, object] = {"//#all": {"dependsOn": [f"//#{name}" for name in made.values()], "inputs": []}}
    scripts = {"all": "true"}
    for step, name in zip(steps, made.values(), strict=True):
        tasks[f"//#{name}"] = {
            "inputs": sources(step, made),
            "outputs": [step.output],
            "dependsOn": [f"//#{need}" for need in needs(step, made)],
        }
        scripts[name] = step.command
    (folder / ".scripts").mkdir()
    for name, text in scripts.items():
        (folder / ".scripts" / name).write_text(text + "\n")
    (folder / "bin").mkdir()
    stand_in = folder / "bin" / "npm"
    stand_in.write_text('#!/bin/sh\n[ "$1" = run ] || exit 0\nexec sh .scripts/"$2"\n')
    stand_in.chmod(0o755)
    package = {
        "name": "root",
        "version": "0.0.0",
        "private": True,
        "packageManager": "npm@10.0.0",
        "workspaces": ["pk/*"],
    }
    lock = {"name": "root", "version": "0.0.0", "lockfileVersion": 3, "requires": True}
    lock["packages"] = {"": {"name": "root", "version": "0.0.0", "workspaces": ["pk/*"]}}
    (folder / "package.json").write_text(json.dumps({**package, "scripts": scripts}))
    (folder / "package-lock.json").write_text(json.dumps(lock))
    (folder / "turbo.json").write_text(json.dumps({"tasks": tasks}))
    commit(folder, "node_modules\n.turbo\nout\n")


def names(steps: Sequence[Step]) -> dict[str, str]:
    """Each step's name by its output, in order."""
    return {step.output: f"s{number}" for number, step in enumerate(steps)}


def needs(step: Step, made: dict[str, str]) -> list[str]:
    return [made[path] for path in step.inputs if path in made]


def sources(step: Step, made: dict[str, str]) -> list[str]:
    return [path for path in step.inputs if path not in made]


def commit(folder: Path, ignored: str) -> None:
    """Outside of a repository some are many times slower."""
    (folder / ".gitignore").write_text(ignored)
    who = ["-c", "user.name=b", "-c", "user.email=b@b"]
    for words in (["init", "-q", "-b", "master"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"error: git {words[0]} ended with {done.returncode}\n{done.stderr.decode()}")
