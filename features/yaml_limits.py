"""Bounds of a YAML text, checked before anything is built of it: depth, nodes with aliases expanded, a scalar's length.

PyYAML builds nested nodes by recursion, and an alias of an alias of an alias stands for more nodes than fit in memory.
The events of its parser come one after the other, whatever the text is.
"""

from __future__ import annotations

import yaml

DEPTH_MAX = 32
# A list of a policy may carry a million values.
NODES_MAX = 1_200_000
# PyYAML reads 1:1:1:… as one number, at a cost that grows with the square of its length.
SCALAR_CHARACTERS_MAX = 65_536


def check_limits(text: str) -> None:
    """Raise yaml.MarkedYAMLError where `text` goes beyond a bound, YAMLError where it is no YAML."""
    anchors: dict[str, int | None] = {}  # expanded nodes; None while the anchor's node is still open
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            size = anchors.get(event.anchor, 0)
            if size is None:
                raise _refused("an alias stands for a part of itself", event)
            nodes += size
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if len(event.value) > SCALAR_CHARACTERS_MAX:
                raise _refused(f"a text of more than {SCALAR_CHARACTERS_MAX} characters", event)
            if event.anchor is not None:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            nodes += 1
            if event.anchor is not None:
                anchors[event.anchor] = None
            if len(open_nodes) > DEPTH_MAX:
                raise _refused(f"nested deeper than {DEPTH_MAX} levels", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                anchors[anchor] = nodes - before
        if nodes > NODES_MAX:
            raise _refused(f"more than {NODES_MAX} values, aliases counted as what they stand for", event)


def _refused(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
