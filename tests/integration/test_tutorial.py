"""The tutorial from nothing to a flagged payment runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from scorer.local_services import Services
from tests.documents import PAGES, ROOT, blocks, run_blocks
from tests.integration.running import environment, test_settings
from tests.ports import free_ports

# What this machine has already, or what other tests do: an installation, and services that outlive the command.
NOT_RUN = ("pip install", "fraud-scorer services start", "fraud-scorer services stop")


def test_the_tutorial_leads_from_nothing_to_a_flagged_payment(
    services: Services, topics_prefix: str, database: str, tmp_path: Path
) -> None:
    """Every block but those of installation and services runs in one folder: the card tester's payments are flagged by
    the rule that the page names, explained with proof, and verified."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix, postgres={"url": database})
    worker_port, sink_port = free_ports(2)
    ports = {"FRAUD_SCORER_HTTP__WORKER_PORT": str(worker_port), "FRAUD_SCORER_HTTP__SINK_PORT": str(sink_port)}
    env = environment(settings, PYTHONPATH=str(ROOT), **ports)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    every = blocks(PAGES / "tutorial.md", "sh", "python")
    page = [block for block in every if not any(words in block.text for words in NOT_RUN)]
    assert len(every) - len(page) == len(NOT_RUN)
    printed = dict(zip((block.text for block in page), run_blocks(page, tmp_path, env), strict=True))
    decided = re.findall(r"^tutorial-(\d+) (\w+) [\d.]+ ?(.*)$", "\n".join(printed.values()), re.MULTILINE)
    assert [int(number) for number, _, _ in decided] == list(range(1, 11))
    assert all(decision == "flag" and "CARD_TESTING" in reasons for _, decision, reasons in decided[7:])
    (explained,) = [text for block, text in printed.items() if "audit explain" in block]
    assert "CARD_TESTING" in explained
    assert "NOT EQUAL" not in explained
