"""History through the live pipeline: files, topics and audit rows to features, scores and decisions.

It may read files, Kafka and Postgres, and write files; it never writes to Kafka. A file is one shard with one partition
whose offsets are its row numbers, in journal order. A topic is replayed along its journal, batch by batch as it was
decided; where the bundle is the one that decided, every digest is checked.
"""

from __future__ import annotations

from scorer.replay.file_batches import BATCH_ROWS, LabelledBatch, chained, file_batches
from scorer.replay.file_replay import replay_file
from scorer.replay.process_shares import replay_shares
from scorer.replay.replay_output import (
    KEPT_FIELDS,
    Open,
    Output,
    Window,
    decision_schema,
    decision_table,
    feature_column,
    part_files,
)
from scorer.replay.replay_report import Progress, Report
from scorer.replay.topic_replay import replay_topic
from scorer.replay.trail_replay import replay_audit
from scorer.replay.training_table import TrainingTable, training_table, write_training_table

__all__ = [
    "BATCH_ROWS",
    "KEPT_FIELDS",
    "LabelledBatch",
    "Open",
    "Output",
    "Progress",
    "Report",
    "TrainingTable",
    "Window",
    "chained",
    "decision_schema",
    "decision_table",
    "feature_column",
    "file_batches",
    "part_files",
    "replay_audit",
    "replay_file",
    "replay_shares",
    "replay_topic",
    "training_table",
    "write_training_table",
]
