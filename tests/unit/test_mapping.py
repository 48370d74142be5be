"""Mappings: what they accept, and what they refuse by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorer.files.mapping import Constant, Mapping, MappingError

HANDBOOK = """
payment_id: TRANSACTION_ID
event_time: TX_DATETIME
amount: TX_AMOUNT
currency: {constant: EUR}
customer_id: CUSTOMER_ID
terminal_id: TERMINAL_ID
label: TX_FRAUD
"""


def test_the_example() -> None:
    """The documented form is read; a label becomes known seven days after its payment by default."""
    mapping = Mapping.from_yaml(HANDBOOK)
    assert mapping.currency == Constant(constant="EUR")
    assert mapping.columns == ["TRANSACTION_ID", "TX_DATETIME", "TX_AMOUNT", "CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD"]
    assert mapping.label_delay == 7 * 86_400_000


def test_delay_and_attributes() -> None:
    """A label's delay is a duration; attributes come from columns or constants; a column used twice is read once."""
    mapping = Mapping.from_yaml(
        HANDBOOK + "label_delay: 36h\nattributes: {basket: ITEMS, again: TX_AMOUNT, source: {constant: web}}\n"
    )
    assert mapping.label_delay == 36 * 3_600_000
    assert mapping.attributes == {"basket": "ITEMS", "again": "TX_AMOUNT", "source": Constant(constant="web")}
    assert mapping.columns.count("TX_AMOUNT") == 1


def test_from_a_file(tmp_path: Path) -> None:
    """A mapping file is read from disk; one that is not there, or not text, is refused by its name."""
    file = tmp_path / "mapping.yaml"
    file.write_text(HANDBOOK, encoding="utf-8")
    assert Mapping.from_yaml(file) == Mapping.from_yaml(HANDBOOK)
    with pytest.raises(MappingError, match=r"absent\.yaml"):
        Mapping.from_yaml(tmp_path / "absent.yaml")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MappingError, match=r"mapping\.yaml"):
        Mapping.from_yaml(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HANDBOOK + "card_number: PAN\n", "unknown field 'card_number'; known are payment_id"),
        (HANDBOOK + "amount_minor: CENTS\n", "amount and amount_minor are both given"),
        (HANDBOOK.replace("amount: TX_AMOUNT\n", ""), "neither amount"),
        (HANDBOOK.replace("payment_id: TRANSACTION_ID\n", ""), "payment_id is missing"),
        (HANDBOOK.replace("event_time: TX_DATETIME\n", ""), "event_time is missing"),
        (HANDBOOK.replace("currency: {constant: EUR}\n", ""), "currency is missing"),
        (HANDBOOK.replace("TRANSACTION_ID", "{constant: one}"), "a constant makes no sense here"),
        (HANDBOOK.replace("TX_FRAUD", "{constant: 1}"), "a constant makes no sense here"),
        (HANDBOOK.replace("{constant: EUR}", "{value: EUR}"), r"write \{constant: VALUE\}"),
        (HANDBOOK.replace("CUSTOMER_ID", "17"), "name a column"),
        (HANDBOOK.replace("CUSTOMER_ID", '""'), "name a column"),
        (HANDBOOK + "label_delay: 7\n", "7 has no unit; write 7s, 7m, 7h or 7d"),
        (HANDBOOK + "label_delay: a week\n", "not a duration"),
        (HANDBOOK.replace("label: TX_FRAUD", "label_delay: 7d"), "label_delay is given without label"),
        (HANDBOOK + "attributes: {no spaces: X}\n", "attribute name 'no spaces'"),
        (HANDBOOK + "attributes: {" + ", ".join(f"a{i}: X" for i in range(65)) + "}\n", "64"),
        (HANDBOOK + "payment_id: OTHER\n", "given twice"),
        ("- a list", "expected a mapping"),
        ("payment_id: [", "not readable as YAML"),
    ],
)
def test_refused_by_name(text: str, message: str) -> None:
    """What a mapping cannot mean is refused by name, with the way out."""
    with pytest.raises(MappingError, match=message):
        Mapping.from_yaml(text)
