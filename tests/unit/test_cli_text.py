"""What commands show of text from outside: as it is, and harmless."""

from __future__ import annotations

import io

import pytest
from rich.console import Group
from rich.panel import Panel
from rich.table import Table

from scorer.cli import command_support
from scorer.cli.command_support import PlainConsole, plain, show

HOSTILE = ["[/x]", "[red]READ[/red]", ":smile:", "[link=http://x]y[/link]", "a[0]"]


@pytest.mark.parametrize("text", HOSTILE)
def test_brackets_are_shown_as_brackets(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles, cells, lines and panels with rich's own markup in their data print it, and nothing fails."""
    shown = io.StringIO()
    console = PlainConsole(file=shown)
    monkeypatch.setattr(command_support, "out", console)
    table = Table("what", title=text)
    table.add_row(text)
    console.print(table)
    console.print(f"line {text}")
    console.print(Group(Panel(table), f"below {text}"))
    show({"value": text, text: 1}, as_json=False, title=text)
    assert shown.getvalue().count(text) == 9


def test_control_characters_never_reach_the_terminal() -> None:
    """Escape sequences, carriage returns, C1 codes, turned writing and lone surrogates are question marks."""
    shown = io.StringIO()
    console = PlainConsole(file=shown)
    table = Table("what")
    table.add_row("a\x1b[2Jb\x1b]0;x\x07c\rd\x9be\u202ef\udc80g")
    console.print(table)
    assert "a?[2Jb?]0;x?c?d?e?f?g" in shown.getvalue()
    assert plain("line\n\tçé–€") == "line\n\tçé–€"
