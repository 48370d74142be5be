"""An audit sink as a process, for tests that kill it: sink_process.py SERVERS TOPIC URL TRANSACTION_BYTES."""

from __future__ import annotations

import signal
import sys
import threading

from scorer.runtime.settings import load
from scorer.sink import AuditSink

if __name__ == "__main__":
    servers, topic, url, transaction_bytes = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    AuditSink(
        load(kafka={"bootstrap_servers": servers, "topic_prefix": topic.removesuffix("audit")}, postgres={"url": url}),
        transaction_bytes_max=int(transaction_bytes),
        partitions=[0],  # no group: a killed member would hold up the next one for the session timeout
    ).run(stop)
