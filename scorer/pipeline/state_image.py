"""A shard's whole state as one image: engine, dedupe table, lists, and where it stands in the journal (pure).

capture = ShardCapture(pipeline)        between two batches
capture.copy()                          on any thread, while batches run
capture.again()                         between two batches; False: much was written meanwhile, copy once more
parts = capture.finish()                between two batches; None: arrays grew meanwhile, begin again
restored(bundle, facts, parts)          a pipeline that goes on there
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.engine_image import Image, StateMismatch, count_of, strings_as_arrays, strings_from_arrays
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.pipeline.card_keys import NO_KEYS
from scorer.pipeline.pipeline import LIST_VALUES_MAX, Pipeline

FORMAT = 1
_HEAD = re.compile(r"[0-9a-f]{64}")


class ShardCapture:
    """One snapshot in the making."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._engine = pipeline.engine.capture()
        self._dedupe = pipeline.dedupe.capture()
        self._rounds = 0

    def copy(self) -> None:
        """The bulk; on any thread, while batches run."""
        self._engine.copy()
        if self._rounds == 0:
            self._dedupe.copy()

    def again(self) -> bool:
        """Between two batches: whether `finish` would be short now. If not, run `copy` once more."""
        self._rounds += 1
        return self._engine.next_round()

    @property
    def stepping(self) -> bool:
        """Whether `again` itself copies from now on, and `copy` has nothing to do."""
        return self._engine.copies_between_batches

    def finish(self) -> dict[str, Image] | None:
        """The state between two batches; None when arrays were replaced meanwhile."""
        engine = self._engine.finish()
        if engine is None:
            return None
        lists = self._pipeline.lists
        # Sorted, so that equal lists are equal bytes and their blocks are stored once.
        texts = [json.dumps([name, sorted(values)]) for name, values in sorted(lists.values.items())]
        meta = {"format": FORMAT, "refused": lists.refused}
        return {"engine": engine, "dedupe": self._dedupe.finish(), "lists": Image(meta, strings_as_arrays(texts))}


def facts(pipeline: Pipeline) -> dict[str, Any]:
    """Where the state stands: what the next journal record must be, and which bundle decided last."""
    return {
        "format": FORMAT,
        "shard": pipeline.shard,
        "sequence": pipeline.sequence,
        "head": pipeline.head,
        "bundle": pipeline.bundle.id,
        "fingerprint": pipeline.bundle.feature_set.fingerprint,
    }


def restored(
    bundle: Bundle,
    known: Mapping[str, Any],
    parts: Mapping[str, Image],
    *,
    folder: Path | None = None,
    keys: PseudonymKeys = NO_KEYS,
) -> Pipeline:
    """A pipeline with the state behind `parts`, deciding with `bundle`; `folder` is for the event log, `keys` for
    pseudonyms.

    Raises StateMismatch or SegmentError, and UsageError where a key is needed and there is none.
    """
    try:
        lists = parts["lists"]
        if known["format"] != FORMAT or lists.meta["format"] != FORMAT:
            raise StateMismatch(f"the shard's state has format {known['format']}, this version reads {FORMAT}")
        if known["fingerprint"] != bundle.feature_set.fingerprint:
            raise StateMismatch(
                f"the shard's state was made by the feature set {str(known['fingerprint'])[:12]}, "
                f"this shard computes {bundle.feature_set.fingerprint[:12]}"
            )
        values = dict(_list_from(text) for text in strings_from_arrays(lists.arrays))
        sequence, refused = count_of(known, "sequence"), count_of(lists.meta, "refused")
        shard, head = count_of(known, "shard", 1 << 31), known["head"]
        if not isinstance(head, str) or not _HEAD.fullmatch(head):
            raise ValueError("head is no digest")
        pipeline = Pipeline(bundle, shard=shard, images=parts, folder=folder, keys=keys)
        pipeline.lists.values, pipeline.lists.refused = values, refused
        pipeline.sequence, pipeline.head = sequence, head
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise StateMismatch(f"the shard's state lacks something that its format has: {exc}") from exc
    return pipeline


def _list_from(text: str) -> tuple[str, set[str]]:
    name, members = json.loads(text)
    if not isinstance(members, list) or len(members) > LIST_VALUES_MAX:
        raise ValueError("a list is none, or too long")
    if not all(isinstance(value, str) for value in (name, *members)):
        raise ValueError("a list holds something else than texts")
    return name, set(members)
