"""Models read from YAML: strict, with file, line and the way out in every refusal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from features.yaml_limits import check_limits


class PlacedError(ValueError):
    """A refusal that knows its place: the keys that lead to it from the value that was being checked."""

    def __init__(self, message: str, *path: Any) -> None:
        super().__init__(message)
        self.path = list(path)


def closest(name: object, known: Iterable[str]) -> str:
    """ "did you mean at_least? " where a known name is much like `name`, else nothing."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know, with the nearest one that it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    raise PlacedError(
                        f"unknown key {str(name)[:64]!r}; {closest(name, cls.model_fields)}known are "
                        f"{', '.join(cls.model_fields)}",
                        name,
                    )
        return data


M = TypeVar("M", bound=BaseModel)


class _LineLoader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice: YAML lets the last one win, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a name, not a list or a mapping", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_yaml_model(model: type[M], text: str, *, where: str, error: type[Exception]) -> M:
    """Parse YAML `text` into `model`; any mistake becomes `error` naming `where`, the line and what to write
    instead."""
    try:
        check_limits(text)
        loader = _LineLoader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else "?"
        raise error(f"{where}:{line}: not readable as YAML: {exc.problem}") from exc
    except yaml.YAMLError as exc:
        raise error(f"{where}: not readable as YAML: {exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as exc:
        # PyYAML's own constructors, on a value that is not what its tag or form claims: a date of month 13, !!bool 3
        raise error(
            f"{where}: a value is not what YAML reads it as ({type(exc).__name__}); write texts in quotation marks"
        ) from exc
    if data is None:
        raise error(f"{where}: the file is empty; it must hold a mapping of settings")
    if not isinstance(data, dict):
        raise error(f"{where}: expected a mapping of settings, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        message = re.sub(r"^Value error, ", "", first["msg"])
        path = [
            p
            for p in (*first["loc"], *_placed(first))
            if isinstance(p, int) or not re.match(r"^(list\[|Range|str$|float$|bool$|function-)", str(p))
        ]
        named = re.match(r"feature (\w+):", message)
        line = _line_of(node, path, named.group(1) if named else None)
        place = "" if named or _placed(first) == path else ".".join(str(p) for p in path)
        raise error(f"{where}:{line}: {place + ': ' if place else ''}{message}") from exc


def _placed(error: Any) -> list[Any]:
    cause = error.get("ctx", {}).get("error")
    return cause.path if isinstance(cause, PlacedError) else []


def _line_of(node: yaml.Node | None, path: list[Any], feature: str | None) -> int:
    """The line of the YAML node at `path`, or of the feature named (a name used twice: the second); the nearest node
    found otherwise."""
    if feature is not None and not path and isinstance(node, yaml.MappingNode):
        lines = [
            int(item.start_mark.line) + 1
            for key, value in node.value
            if key.value == "features" and isinstance(value, yaml.SequenceNode)
            for item in value.value
            if isinstance(item, yaml.MappingNode)
            and any(k.value == "name" and v.value == feature for k, v in item.value)
        ]
        if lines:
            return lines[-1]
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == str(part)]
            if not found:
                break
            node = found[0]
        else:
            break
    return int(node.start_mark.line) + 1 if node is not None else 1
