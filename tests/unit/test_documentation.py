"""The documentation: it builds strictly, its reference is complete, and what it asks a reader to type exists."""

from __future__ import annotations

import ast
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.feature_set import AGGREGATES
from schemas.contract_error import DeadLetterReason
from schemas.control_record import parse_control
from schemas.decision import Decision
from schemas.fast_decision import FastDecision
from schemas.json_schemas import json_schemas
from schemas.label_record import Label
from schemas.payment import Payment
from scorer.cli.lazy_commands import COMMANDS, load
from scorer.model.vector.jit_compiler import CACHE_VARIABLE
from scorer.runtime.settings import load as load_settings
from scorer.runtime.settings_listing import described
from tests.documents import DOCUMENTS, PAGES, ROOT, blocks, command_lines, complaint, inline_commands, ours
from tests.metrics_table import documented

# Beside the settings: read before them, or not kept by a process.
VARIABLES = {CACHE_VARIABLE, "FRAUD_SCORER_SIGNING_PASSWORD"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI and people build it; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    config = str(ROOT / "deploy/docs/mkdocs.yml")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def text_of(site: Path, page: str) -> str:
    """A page's text without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8")))


def setting_names() -> list[str]:
    return [name for name, *_ in described(load_settings())]


def command_trees() -> dict[str, Any]:
    """Every command and every one below it by its path, such as `audit set-aside list`."""
    found: dict[str, Any] = {}
    queue = [(name, load(name)) for name in COMMANDS]
    while queue:
        path, command = queue.pop()
        found[path] = command
        queue += [(f"{path} {name}", below) for name, below in getattr(command, "commands", {}).items()]
    return found


def test_the_reference_has_everything(site: Path) -> None:
    """Each setting, command, option, contract, field and reason of the code stands on its page of the built site."""
    settings, commands = text_of(site, "reference/settings.html"), text_of(site, "reference/commands.html")
    assert [name for name in setting_names() if name not in settings] == []
    page = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert [path for path in command_trees() if f'id="{path.replace(" ", "-")}"' not in page] == []
    options = {option for command in command_trees().values() for one in command.params for option in one.opts}
    assert [option for option in sorted(options) if option.startswith("--") and option not in commands] == []
    contracts, errors = text_of(site, "reference/contracts.html"), text_of(site, "reference/errors.html")
    for name, schema in json_schemas().items():
        assert (site / f"reference/{name}.schema.json").is_file()
        assert [field for field in schema.get("properties", {}) if field not in contracts] == []
    assert [reason.value for reason in DeadLetterReason if reason.value not in errors] == []


def test_nothing_generated_is_kept() -> None:
    """Pages of the reference hold prose and markers alone: a table of settings in the repository would go stale."""
    for page in ("settings", "commands", "contracts", "errors"):
        text = (PAGES / f"reference/{page}.md").read_text(encoding="utf-8")
        assert "<!-- generated: " in text
        assert "\n|" not in text, page


def test_every_command_line_is_one_that_the_program_takes() -> None:
    """Every `fraud-scorer …` in a block of shell has a command, options, arguments and values that it takes; in running
    text, and in comments of YAML, at least the command and the options exist."""
    found, checked = [], 0
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for words in command_lines(block.text):
                if (arguments := ours(words)) is not None:
                    checked += 1
                    found += [f"{block.place}: {problem}"] if (problem := complaint(arguments, whole=True)) else []
    for document in (*DOCUMENTS, *sorted((ROOT / "deploy").rglob("*.yaml"))):
        for words in inline_commands(document):
            checked += 1
            found += [f"{document.name}: {problem}"] if (problem := complaint(words, whole=False)) else []
    for path, command in command_trees().items():  # the reference shows the example of each help
        for words in command_lines(" ".join((command.help or "").partition("Example: ")[2].split())):
            if (arguments := ours(words)) is not None:
                checked += 1
                found += [f"{path} --help: {problem}"] if (problem := complaint(arguments, whole=True)) else []
    assert found == []
    assert checked > 200


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("fraud-scorer trian", "there is no command trian"),
        ("A=1 fraud-scorer audit verifi 2> log &", "audit takes no verifi"),
        ('eval "$(fraud-scorer services begin)"', "services takes no begin"),
        ("cat x | .venv/bin/fraud-scorer train --nope", "train: No such option: --nope"),
        ("fraud-scorer bundle sign bundles/cards", "bundle sign needs --key"),
        ("fraud-scorer acls stranger || true  # comment", "acls role stranger"),
        ("fraud-scorer bundle show \\\n  bundles/cards > shown.txt", None),
        ("fraud-scorer recover --help", None),
    ],
)
def test_a_wrong_command_line_is_noticed(line: str, problem: str | None) -> None:
    """The check itself reads shell as a shell does, and tells what the program takes from what it does not."""
    (found,) = [complaint(given, whole=True) for words in command_lines(line) if (given := ours(words)) is not None]
    assert found == problem if problem is None else str(found).startswith(problem)


def test_every_setting_that_a_document_names_exists() -> None:
    """Whoever copies FRAUD_SCORER_… from a document sets something; a name with … in it stands for several."""
    known = setting_names()
    known += [f"{setting}_FILE" for setting in known]
    unknown = []
    for document in DOCUMENTS:
        for found in re.finditer(r"FRAUD_SCORER_[A-Z0-9_]*(?P<open>…[A-Z_]*)?", document.read_text(encoding="utf-8")):
            beginning, _, end = found[0].partition("…")
            if found["open"] is None:
                fits = found[0] in VARIABLES or found[0] in known
            else:
                fits = any(setting.startswith(beginning) and setting.endswith(end) for setting in known)
            unknown += [] if fits else [f"{document.name}: {found[0]}"]
    assert unknown == []


def test_every_metric_that_a_document_names_is_served() -> None:
    """What a page, a runbook or the README names is in deploy/METRICS.md, which is compared with what is served."""
    known = {row.name for part in ("Worker", "Sink", "Both") for row in documented(part)}
    known |= {"fraud_scorer_writer", "fraud_scorer_reader"}  # roles of Postgres
    named = re.compile(r"`(fraud_scorer_[a-z_]+)(?:{[^`]*)?`")
    found = {(path.name, name) for path in DOCUMENTS for name in named.findall(path.read_text(encoding="utf-8"))}
    assert sorted((document, name) for document, name in found if name not in known) == []


def test_every_aggregate_is_on_the_page_of_features() -> None:
    """deploy/FEATURES.md has a row for each aggregate and for no other."""
    rows = re.findall(
        r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", (ROOT / "deploy/FEATURES.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(AGGREGATES)


def test_every_file_that_a_page_names_exists() -> None:
    """A path of the repository in the pages' text leads somewhere (links are checked by the strict build)."""
    path = re.compile(r"`((?:tests|deploy|scorer|features|schemas|migrations)/[\w./-]+)`")
    pages = sorted((ROOT / "deploy").rglob("*.md"))
    named = {(page.name, name) for page in pages for name in path.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert sorted((page, name) for page, name in named if not (ROOT / name).exists()) == []


def test_every_module_that_a_document_runs_exists() -> None:
    """`python -m tests.benchmarks.…` has the module, and each of its options."""
    wrong, checked = [], 0
    for document in DOCUMENTS:
        for module, rest in re.findall(
            r"python -m ((?:tests|scorer)[\w.]*)([^`\n]*)", document.read_text(encoding="utf-8")
        ):
            checked += 1
            stem = ROOT.joinpath(*module.split("."))
            file = next((p for p in (stem.with_suffix(".py"), stem / "__main__.py") if p.is_file()), None)
            options = re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0])
            missing = [option for option in options if file is None or f'"{option}"' not in file.read_text()]
            wrong += [f"{document.name}: {module} {missing}"] if file is None or missing else []
    assert wrong == []
    assert checked > 20


def test_python_blocks_compile_and_print_what_they_say(tmp_path: Path) -> None:
    """Every Python block of the pages is Python; those with lines that begin with "# > " run without any service and
    print these lines. (README's and the tutorials' are run by tests of their own.)"""
    run = 0
    for document in DOCUMENTS:
        for block in blocks(document, "python"):
            ast.parse(block.text, block.place)
            expected = "".join(f"{line}\n" for line in re.findall(r"^# > (.*)", block.text, re.MULTILINE))
            if not expected or document.name == "README.md":
                continue
            run += 1
            done = subprocess.run(
                [sys.executable, "-c", block.text],
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
                check=False,
            )  # fmt: skip
            assert (done.stdout, done.returncode) == (expected, 0), f"{block.place}\n{done.stderr}"
    assert run > 0


def test_json_blocks_are_records_of_a_contract() -> None:
    """Every JSON block that a document shows is accepted as one of the topics' records."""
    contracts = (Payment, Decision, FastDecision, Label)
    for document in DOCUMENTS:
        for block in blocks(document, "json"):
            raw = block.text.encode()
            given = json.loads(raw)
            if "type" in given:
                parse_control(raw)
            else:
                names = [set(contract.model_fields) for contract in contracts]
                (contract,) = [one for one, known in zip(contracts, names, strict=True) if known >= set(given)][:1]
                contract.model_validate_json(raw)
