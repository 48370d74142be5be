"""What the documents say that can be checked: their blocks of code, and the command lines in them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from scorer.cli.lazy_commands import COMMANDS, load

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "deploy/docs/pages"
# The changelog is history: it names what was.
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # of the click that typer stands on, or carries
_INLINE = re.compile(r"`([^`\n]+)`")
_ENDS = {";", "&", "&&", "|", "||", "(", ")"}
_REDIRECTIONS = {"<", ">", ">>", ">&"}


def with_command(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment with `fraud-scorer` on the PATH, as a program in `folder`. A function of the shell would do, but
    for one that runs in the background: its `$!` is a shell's, and a signal to that leaves the program running."""
    program = folder / "bin" / "fraud-scorer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m scorer "$@"\n')
    program.chmod(0o755)
    path = environment.get("PATH", os.defpath)
    return {**environment, "PATH": f"{program.parent}{os.pathsep}{path}"}


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text."""

    place: str
    language: str
    text: str


def blocks(document: Path, *languages: str) -> list[Block]:
    """The document's blocks of these languages, in order."""
    whole = document.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(whole):
        if block["language"] in languages:
            text = "\n".join(line.removeprefix(block["indent"]) for line in block["text"].splitlines())
            place = f"{document.relative_to(ROOT)}:{whole.count(chr(10), 0, block.start()) + 1}"
            found.append(Block(place, block["language"], text + "\n"))
    return found


def run_blocks(found: Sequence[Block], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """What each block prints, run one after the other in `folder`; each has to succeed. The processes that they leave
    behind, whose ids they write to *.pid, are ended."""
    env, printed = with_command(environment, folder), []
    try:
        for block in found:
            run = ["bash", "-euc"] if block.language == "sh" else [sys.executable, "-c"]
            # A file, not a pipe: the processes that a block leaves behind would hold a pipe open.
            with (folder / "printed.txt").open("w+") as out:
                done = subprocess.run(
                    [*run, block.text], cwd=folder, env=env, stdout=out, stderr=out, timeout=400, check=False
                )
                out.seek(0)
                printed.append(out.read())
            assert done.returncode == 0, f"{block.place}\n{block.text}\n{printed[-1]}"
    finally:
        for file in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
    return printed


def command_lines(script: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script, without redirections and assignments before it."""
    for line in script.replace("\\\n", " ").splitlines():
        for inner in re.findall(r"\$\(([^()]*)\)", line):
            yield from command_lines(inner)
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.wordchars += "$:,…{}@%^!"
        words: list[str] = []
        tokens = list(reader)
        for number, token in enumerate(tokens):
            if token in _ENDS:
                yield from [words] if words else []
                words = []
            elif token in _REDIRECTIONS:
                if words and words[-1].isdigit():
                    words.pop()
            elif number and tokens[number - 1] in _REDIRECTIONS:
                pass  # the file
            elif words or not re.fullmatch(r"[A-Za-z_]\w*=.*", token, re.DOTALL):
                words.append(token)
        yield from [words] if words else []


def ours(words: list[str]) -> list[str] | None:
    """The arguments of a call of fraud-scorer; None for another program."""
    return words[1:] if words and words[0].rpartition("/")[2] == "fraud-scorer" else None


def inline_commands(document: Path) -> Iterator[list[str]]:
    """The arguments of commands in running text: `fraud-scorer doctor --part sink`, and `bundle sign --new-key`."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    for mention in _INLINE.findall(text):
        words = mention.split()
        if words[0] == "fraud-scorer" and len(words) > 1:
            yield words[1:]
        elif words[0] in COMMANDS and len(words) > 1:
            group = getattr(load(words[0]), "commands", {})
            if words[1] in group or words[1].startswith("--"):
                yield words


def complaint(arguments: list[str], *, whole: bool) -> str | None:
    """What is wrong with a call: an unknown command, option or argument; in a `whole` one also what is missing, or has
    a wrong value. None when nothing is."""
    name, *rest = arguments
    if name not in COMMANDS:
        return f"there is no command {name}"
    command, path = load(name), name
    while rest and (below := getattr(command, "commands", {}).get(rest[0])) is not None:
        command, path, rest = below, f"{path} {rest[0]}", rest[1:]
    if rest and hasattr(command, "commands") and not rest[0].startswith("--"):
        return f"{path} takes no {rest[0]}"
    if not whole:
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word for word in rest if word.startswith("--") and word not in known | {"--help"}]
        return f"{path} has no {unknown[0]}" if unknown else None
    return None if "--help" in rest else _parse_error(command, path, rest)


def _parse_error(command: Any, path: str, rest: list[str]) -> str | None:
    context = command.make_context(path, [], resilient_parsing=True)
    context.resilient_parsing = False
    try:
        values, left, _ = command.make_parser(context).parse_args(args=list(rest))
    except _USAGE_ERROR as exc:
        return f"{path}: {exc}"
    if left:
        return f"{path} takes no {left[0]}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if parameter.required and not isinstance(value, str | int | float | list | tuple):
            return f"{path} needs {parameter.opts[0]}"
        if isinstance(value, str):
            try:
                parameter.process_value(context, value)
            except _USAGE_ERROR as exc:
                if "does not exist" not in str(exc):  # files of the reader's
                    return f"{path} {parameter.opts[0]} {value}: {exc}"
    return None
