"""The live lists as a replay of audit rows has them: what the worker listed, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from schemas.card_fields import CardFields
from schemas.control_record import parse_control, parse_control_masked
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.pipeline.card_keys import NO_KEYS
from scorer.replay.logged_lists import LoggedLists, is_masked
from tests.integration.audit_trail import migrated
from tests.integration.test_audit_commands import FEATURES
from tests.integration.test_prove import write

CARD, GROUPED, PLAIN = "4111111111111111", "4111 1111 1111 1111", "t_1"
KEYS = PseudonymKeys((b"k" * 32,))
END = 10


def bundle(folder: Path, rule: str) -> Bundle:
    """Its policy has a list, blocked, on terminal_id, which is declared so."""
    features = FEATURES + f"card_numbers: {{terminal_id: {rule}}}\n"
    return Bundle.load(write(folder, rule, seed=5, features=features))


def stored(url: str, *values: str, kind: str = "list_add", name: str = "blocked", first: int = 0) -> None:
    """The changes as the sink stores them, from offset `first` on."""
    with psycopg.connect(url) as connection:
        for offset, value in enumerate(values, first):
            record = parse_control_masked(json.dumps({"type": kind, "list": name, "value": value}).encode())
            connection.execute(
                'INSERT INTO control_changes (topic, "offset", type, record, recorded_at) '
                "VALUES ('control', %s, %s, %s, now())",
                (offset, kind, json.dumps(record.model_dump(mode="json", exclude_none=True))),
            )


def values(url: str, bundle: Bundle, *, control_end: int = END, keys: PseudonymKeys = NO_KEYS) -> set[str]:
    """What is on the list at the end."""
    with psycopg.connect(url, autocommit=True) as connection:
        lists = LoggedLists(connection, bundle, shard=0, control_end=control_end, keys=keys)
        lists.advance(control_end)
        return lists.values["blocked"]


@pytest.mark.parametrize("rule", ["opaque", "token"])
@pytest.mark.parametrize("card", [CARD, GROUPED])
def test_a_value_that_is_kept_masked_is_refused(database: str, tmp_path: Path, rule: str, card: str) -> None:
    """The worker listed the card's number or its pseudonym, and the trail has asterisks: no decision is made without
    it. Before it came, and on a list that the policy does not have, it is of no account."""
    url = migrated(database)
    stored(url, PLAIN)
    stored(url, card, first=5)
    stored(url, card, first=6, name="other")
    with pytest.raises(
        UsageError, match=r"1 changes.*list blocked, offset 5 of topic control.*--input topic"
    ) as raised:
        values(url, bundle(tmp_path, rule), keys=KEYS)
    assert not any(character * 4 in str(raised.value) for character in "14*")
    before = values(url, bundle(tmp_path / "before", rule), control_end=5, keys=KEYS)
    assert len(before) == 1


def test_values_of_a_token_list_are_those_of_the_worker(database: str, tmp_path: Path) -> None:
    """Any value of a token field is listed by its pseudonym; without the key nothing is decided."""
    url = migrated(database)
    stored(url, PLAIN, "t_2")
    stored(url, "t_2", first=2, kind="list_remove")
    raw = json.dumps({"type": "list_add", "list": "blocked", "value": PLAIN}).encode()
    live = parse_control(raw, cards=CardFields.of({"lists.blocked": "token"}).with_key(KEYS.current()))
    made = bundle(tmp_path, "token")
    assert values(url, made, keys=KEYS) == {live.value}  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="key"):
        values(url, made)


def test_a_value_that_the_worker_refused_is_not_listed(database: str, tmp_path: Path) -> None:
    """A card number for a list on a field that must not be one made a dead letter; the other values are listed."""
    url = migrated(database)
    stored(url, CARD, PLAIN)
    assert values(url, bundle(tmp_path, "refuse")) == {PLAIN}


@pytest.mark.parametrize("value", ["*", "t_*", "*" * 12, "4" * 16, "****************4"])
def test_a_value_with_asterisks_of_its_own_is_none_that_was_masked(value: str) -> None:
    """Only what has no digit left and as many asterisks as a card number has digits."""
    assert not is_masked(value)
