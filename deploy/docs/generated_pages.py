"""Makes the reference from the code while the site is built, so that it cannot be stale: nothing of it is kept.

A page has what a function below makes, as Markdown, in the place of a line of its own:

    <!-- generated: settings -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from mkdocs.structure.files import File, Files
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from features.feature_description import describe, duration
from features.feature_set import FeatureSet
from schemas.contract_error import DeadLetterReason
from schemas.decision import Decision
from schemas.journal_record import Refusal
from schemas.json_schemas import json_schemas
from scorer.cli.lazy_commands import COMMANDS, load
from scorer.errors import FraudScorerError, PromiseBroken, UsageError
from scorer.operate.doctor.process_check import state_bytes
from scorer.operate.setup import topic_plans
from scorer.policy.policy_document import DEGRADED_REASON, LATE_REASON, REFUSED_PREFIX, SCORE_REASON, Policy
from scorer.proof.differences import SENTENCES
from scorer.runtime.process_limits import SINK_MEMORY_MIB, WORKER_MEMORY_MIB
from scorer.runtime.settings import PREFIX, Section, Settings
from scorer.worker.pending_commits import BYTES_AHEAD_MAX

ROOT: Final = Path(__file__).resolve().parents[2]
ALERTS: Final = ROOT / "deploy/prometheus/alerts.yaml"
# Codes that the program explains in several places only. One without a sentence, or one too many, ends the build.
ACTIVATION_REFUSALS: Final = {
    "unsigned": "No signature, number or expiry is with it.",
    "untrusted": "It is signed, and not by a trusted key, or the signature does not fit.",
    "other_deployment": "It was signed for another journal topic.",
    "number_used": "Its number is not above the last one that was used.",
    "expired": "It was read after its expiry.",
    "place": "The bundle does not lie below an allowed location.",
    "unreachable": "The bundle could not be fetched within the time allowed.",
    "unfit": "The bundle was fetched, and is refused: its hashes, its signature, its golden rows or its feature set.",
}


def on_files(files: Files, config: Any) -> Files:
    """mkdocs' event: each contract's JSON Schema stands beside the page of contracts."""
    for name, schema in json_schemas().items():
        files.append(File.generated(config, f"reference/{name}.schema.json", content=json.dumps(schema, indent=2)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - mkdocs' signature
    """mkdocs' event: each marker replaced by what is made for it. Raises KeyError for a marker that is not known."""
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


def settings() -> str:
    """Every setting with its type, default and meaning, by section; the environment of the build plays no part."""
    parts: list[str] = []
    loose: list[tuple[str, FieldInfo]] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            parts += [f"## {name.capitalize()}", (section.__doc__ or "").strip()]
            inner = [(f"{PREFIX}{name}__{key}".upper(), value) for key, value in section.model_fields.items()]
            parts.append(_settings_table(inner))
        else:
            loose.append((f"{PREFIX}{name}".upper(), field))
    parts += ["## Without a section", _settings_table(loose)]
    return "\n\n".join(parts)


def _settings_table(fields: list[tuple[str, FieldInfo]]) -> str:
    rows = [(f"`{name}`", _default(field), _cell(field.description or "") + _bounds(field)) for name, field in fields]
    return _table(("setting", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value in (None, "", [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(field: FieldInfo) -> str:
    names = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [f"{text} {getattr(item, name)}" for item in field.metadata for name, text in names.items()
             if getattr(item, name, None) is not None]  # fmt: skip
    choices = [f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str)]
    found += [f"one of {', '.join(choices)}"] if choices else []
    return f" ({', '.join(found)})" if found else ""


def commands() -> str:
    """Every command with its help, its example, arguments and options, as `--help` has them."""
    lines = [(f"[`{name}`](#{_anchor(name)})", _cell(line)) for name, (_, line) in COMMANDS.items()]
    parts = [_table(("command", "what it does"), lines)]
    for name in COMMANDS:
        for path, command in command_tree(name, load(name)):
            parts += [f"## `{path}` {{#{_anchor(path)}}}", *_command(path, command)]
    return "\n\n".join(parts)


def command_tree(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, with their paths, such as `audit set-aside list`."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from command_tree(f"{path} {name}", below)


def _command(path: str, command: Any) -> Iterator[str]:
    text, _, example = (command.help or "").partition("Example: ")
    yield "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    if example:
        yield f"```sh\n{' '.join(example.split())}\n```"
    context = command.make_context(path, [], resilient_parsing=True)
    rows = []
    for parameter in command.params:
        shown = parameter.get_help_record(context)
        if shown is not None and shown[0] not in ("-h, --help", "--help"):
            rows.append((f"`{shown[0]}`", _cell(" ".join(shown[1].split()))))
    if rows:
        yield _table(("argument or option", "meaning"), rows)


def _anchor(path: str) -> str:
    return path.replace(" ", "-")


def topics() -> str:
    """The topics as `setup` makes them with default settings."""
    plans = topic_plans(Settings.model_construct())
    return _table(
        ("topic", "partitions", "kept for", "what for"),
        [(f"`{p.name}`", str(p.partitions), _retention(p.config["retention.ms"]), _cell(p.why)) for p in plans],
    )


def contracts() -> str:
    """The fields of every contract."""
    parts: list[str] = []
    for name, schema in json_schemas().items():
        parts += [f"## {name.replace('_', ' ').capitalize()} {{#{name}}}", f"[JSON Schema]({name}.schema.json)"]
        parts += _contract(schema)
    return "\n\n".join(parts)


def _retention(milliseconds: str) -> str:
    return "ever" if milliseconds == "-1" else f"{int(milliseconds) / 86_400_000:g} d"


def _contract(schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("description"):
        yield schema["description"]
    if "oneOf" in schema:
        for each in schema["oneOf"]:
            part = schema["$defs"][each["$ref"].rpartition("/")[2]]
            yield f"### `{part['properties']['type']['const']}`"
            yield from _contract({**part, "$defs": schema["$defs"]})
        return
    required = schema.get("required", [])
    rows = [
        (
            f"`{name}`",
            _cell(_kind(field, schema.get("$defs", {}))),
            "yes" if name in required else "",
            _cell(field.get("description", "")) + _example(field),
        )
        for name, field in schema["properties"].items()
    ]
    yield _table(("field", "type", "required", "meaning"), rows)


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        found = definitions[name]
        return _kind(found, definitions) if "properties" not in found else f"object {name}"
    if field.get("type") == "string" and "anyOf" in field:
        return "string, " + " or ".join(each["format"] for each in field["anyOf"])
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        values = [str(value) for value in field["enum"]]
        return f"one of {len(values)} codes" if len(values) > 10 else f"one of {', '.join(values)}"
    if "anyOf" in field:
        kinds = [_kind(each, definitions) for each in field["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    kind = field.get("type", "any")
    if kind == "array":
        items = field.get("items") or {}
        return f"list of {_kind(items, definitions)}" if items else "list"
    limits = [f"{text} {_number(field[name])}" for name, text in _LIMITS.items() if name in field]
    return f"{kind}, {', '.join(limits)}" if limits else str(kind)


_LIMITS: Final = {
    "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "characters ≤",
}  # fmt: skip


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if power > 16 and value == 2**power else f"{value}"


def _example(field: dict[str, Any]) -> str:
    examples = field.get("examples")
    return f" Such as `{json.dumps(examples[0])}`." if examples else ""


def modes() -> str:
    """The modes of a decision, as its contract describes them."""
    described = (Decision.model_fields["mode"].description or "").rstrip(".").split("; ")
    return _table(("mode", "meaning"), [_mode(mode) for mode in described])


def reason_codes() -> str:
    """The reason codes that are not a policy's own."""
    policy = Policy.from_yaml("name: p\nflag: {share: 0.01}")
    own = [(f"`{code}`", policy.sentence(code)) for code in (SCORE_REASON, LATE_REASON, DEGRADED_REASON)]
    refused = f"Mode refused: the reason of the dead letter, in capitals, such as `{REFUSED_PREFIX}MISSING_FIELD`."
    return _table(("reason", "meaning"), [*own, (f"`{REFUSED_PREFIX}…`", refused)])


def refusals() -> str:
    """Why a record was refused."""
    return _table(("reason", "meaning"), [(f"`{reason.value}`", _cell(reason.sentence)) for reason in DeadLetterReason])


def activation_refusals() -> str:
    """Why an activation was refused. Raises ValueError when the journal's contract has other reasons."""
    if set(ACTIVATION_REFUSALS) != set(get_args(Refusal)):
        raise ValueError("ACTIVATION_REFUSALS has other reasons than schemas/journal_record.py:Refusal")
    return _table(("reason", "meaning"), [(f"`{name}`", text) for name, text in ACTIVATION_REFUSALS.items()])


def causes() -> str:
    """Causes of a difference that `prove` reports."""
    return _table(("cause", "meaning"), [(f"`{cause.value}`", _cell(text)) for cause, text in SENTENCES.items()])


def _mode(text: str) -> tuple[str, str]:
    name, _, rest = text.partition(" ")
    return f"`{name}`", rest.strip("()") or "decided by lists, rules and the model"


def exit_codes() -> str:
    """What a command's exit code means."""
    own = [
        (str(error.exit_code), _cell(error.__doc__ or "")) for error in (FraudScorerError, UsageError, PromiseBroken)
    ]
    rows = [
        ("0", "Done; of `run` and `sink`: stopped by a signal, and drained."),
        *own,
        ("128 + signal", "Ended at once by a second signal."),
        ("130", "Interrupted (Ctrl-C), where a command has no other way to stop."),
    ]
    return _table(("code", "meaning"), rows)


def memory() -> str:
    """Bytes of a key and of a payment with the demo's feature set, and the sum for an example."""
    declared = FeatureSet.from_yaml(ROOT / "deploy/examples/demo/feature_set.yaml")
    cost, keys, payments = describe(declared), 5_000_000, 50_000_000
    key_bytes, log_bytes = state_bytes(declared, keys, payments)
    ahead = BYTES_AHEAD_MAX // 2**20
    rows = [(f"a key of entity `{entity}`", f"{size} bytes") for entity, size in cost.bytes_per_key.items()]
    rows += [
        ("a payment in the event log", f"{cost.bytes_per_payment} bytes"),
        ("log kept", duration(cost.log_kept_ms)),
        ("the worker's process itself, at least", f"{WORKER_MEMORY_MIB} MiB"),
        ("records of batches that are not committed yet, of a shard, at most", f"{ahead} MiB and one batch"),
        ("the sink's process, at least", f"{SINK_MEMORY_MIB} MiB"),
        (f"together: {keys:,} keys, evenly of all entities", f"{key_bytes / 2**30:.1f} GiB"),
        (f"together: {payments:,} payments in the log", f"{log_bytes / 2**30:.1f} GiB"),
    ]
    return _table(("what", "takes"), rows)


def alerts() -> str:
    """Every alert with its severity, its condition and its runbook."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    rows = [
        (
            f"[{rule['alert']}](../runbooks/{rule['alert']}.md)",
            rule["labels"]["severity"],
            str(rule.get("for", "at once")),
            _cell(_without_templates(rule["annotations"]["summary"])),
        )
        for rule in rules
    ]
    return _table(("alert", "severity", "for", "text"), rows)


def _without_templates(text: str) -> str:
    """The text of an alert with what Prometheus puts in: labels by their names, values as an ellipsis."""
    return re.sub(r"{{[^}]*}}", "…", re.sub(r"{{ *\$labels\.(\w+) *}}", r"*\1*", text))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_barred, line))} |" for line in lines)


def _barred(cell: str) -> str:
    """A bar outside code would end the cell."""
    parts = cell.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    """Text for a table: one line, and brackets shown as they are."""
    return " ".join(text.split()).replace("<", "&lt;").replace("[", "\\[")


MARKER: Final = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
PARTS: Final = {
    make.__name__: make
    for make in (
        settings, commands, topics, contracts, exit_codes, modes, reason_codes, refusals, activation_refusals, causes,
        memory, alerts,
    )
}  # fmt: skip
