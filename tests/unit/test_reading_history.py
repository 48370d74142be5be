"""What reads history shows the broker a client of its own, which a quota can hold, and may read from followers."""

from __future__ import annotations

import pytest

from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime.settings import load, reading_history


def test_history_is_read_under_its_own_name_and_rack() -> None:
    """Replay's client id and rack reach its clients alone; the worker's stay as they were."""
    settings = load(kafka={"client_rack": "a"}, replay={"client_id": "replay-of-risk", "client_rack": "b"})
    live, history = kafka.client_config(settings.kafka), kafka.client_config(reading_history(settings).kafka)
    assert (live["client.id"], live["client.rack"]) == ("fraud-scorer", "a")
    assert (history["client.id"], history["client.rack"]) == ("replay-of-risk", "b")
    assert live["bootstrap.servers"] == history["bootstrap.servers"]


def test_without_a_rack_of_its_own_history_is_read_as_everything_is() -> None:
    """No rack set is no client.rack; the worker's rack serves replay too."""
    assert "client.rack" not in kafka.client_config(reading_history(load()).kafka)
    settings = load(kafka={"client_rack": "a"})
    assert kafka.client_config(reading_history(settings).kafka)["client.rack"] == "a"


def test_a_client_id_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client id that no quota could name is refused with the setting's own name."""
    monkeypatch.setenv("FRAUD_SCORER_REPLAY__CLIENT_ID", "with space")
    with pytest.raises(UsageError, match="FRAUD_SCORER_REPLAY__CLIENT_ID"):
        load()
