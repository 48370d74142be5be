"""Audit records that would take gigabytes are refused by their envelopes, before Arrow reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.audit_record import (
    AuditColumns,
    AuditError,
    AuditHeader,
    arrow_schema,
    decode_header,
    decode_parts,
    encode,
)
from tests.arrow_bombs import compressed, framed, one_column_many_times, one_text_many_times, with_dictionary
from tests.audit_columns import about_of, columns

ROOT = Path(__file__).resolve().parents[2]
ROOM_BYTES = 192 * 1024 * 1024
# Reads each file with little room above what is taken already, and what it took at most.
PROGRAM = f"""
import resource, sys
from pathlib import Path
from schemas.audit_record import AuditError, decode_header, decode_parts
values = [Path(name).read_bytes() for name in sys.argv[1:]]
def pages(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (pages("VmSize:") + {ROOM_BYTES},) * 2)
before = pages("VmRSS:")
for read in (decode_parts, decode_header):
    for value in values:
        try:
            read(value)
        except AuditError as error:
            print(type(error).__name__, str(error)[:90])
print((pages("VmHWM:") - before) // 1024 ** 2)
"""


def _metadata() -> dict[bytes, bytes]:
    header = b'{"bundle":"b","threshold":0.5,"feature_fingerprint":"f","shard":0,"sequence":0,"rows":30000000}'
    return {b"header": header, b"feature_names": b'["a"]', b"journal": b"{}"}


def _bombs() -> dict[str, bytes]:
    chunk = arrow_schema(1).with_metadata(_metadata())
    return {
        "zstd": compressed(chunk, "zstd", 5_000_000),
        "lz4": compressed(chunk, "lz4", 400_000),
        "metadata": one_text_many_times(60_000, 240_000),
        "columns": one_column_many_times(100_000, 1),
        "deep columns": one_column_many_times(20, 4),
        "dictionary": with_dictionary(1000),
    }


def test_small_records_that_would_be_large_are_refused_in_little_memory(tmp_path: Path) -> None:
    """Compressed buffers, one text named 60,000 times, one column named 100,000 times, a dictionary: each is refused
    by a process that has 192 MiB left, and takes a small part of that."""
    bombs = _bombs()
    assert all(len(value) < 512 * 1024 for value in bombs.values())
    for name, value in bombs.items():
        (tmp_path / name).write_bytes(value)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in bombs)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *refused, taken_mib = done.stdout.splitlines()
    assert all(line.startswith("AuditError") for line in refused)
    # Of a compressed chunk the header alone may be read: it lies in the description, which is not compressed.
    assert len(refused) == 2 * len(bombs) - 2
    assert int(taken_mib) < 32


def test_the_bombs_are_real() -> None:
    """Arrow itself reads such streams: a text of 1,000 bytes named 20,000 times takes 20 MB."""
    before = pa.total_allocated_bytes()
    with pa.ipc.open_stream(compressed(arrow_schema(1), "zstd", 1_000_000)) as stream:
        batch = stream.read_next_batch()
    assert pa.total_allocated_bytes() - before > 50_000_000
    del batch
    value = one_text_many_times(2_000, 1_000)
    with pa.ipc.open_stream(value) as stream:
        assert stream.schema.metadata == {b"k": b"x" * 1_000}
    with pytest.raises(AuditError, match="2000 entries of metadata"):
        decode_header(value)


@given(columns())
@settings(max_examples=60, deadline=None)
def test_every_record_of_ours_passes(given_columns: AuditColumns) -> None:
    """Whatever a worker encodes is read back; the check refuses none of it."""
    about = about_of(given_columns)
    header = AuditHeader(**about.model_dump(), shard=0, sequence=2**63 - 1, journal="{}")
    for chunk in encode(given_columns, header):
        assert decode_parts(chunk).header == decode_header(chunk)


@pytest.mark.parametrize("number", [{"shard": 2**31}, {"sequence": 2**63}, {"rows": 2**31}, {"first_row": 2**40}])
def test_numbers_that_no_table_holds_are_refused(number: dict[str, int]) -> None:
    """A shard of 2^40 makes a record unreadable, not a row that Postgres refuses."""
    text = ",".join(f'"{name}":{value}' for name, value in ({"shard": 0, "sequence": 0} | number).items())
    header = f'{{"bundle":"b","threshold":0.5,"feature_fingerprint":"f",{text}}}'.encode()
    schema = arrow_schema(1).with_metadata(_metadata() | {b"header": header})
    with pytest.raises(AuditError, match="header cannot be read"):
        decode_header(bytes(schema.serialize()))


@given(st.binary(max_size=200), st.data())
@settings(max_examples=300, deadline=None)
def test_any_envelope_is_read_or_refused(noise: bytes, data: st.DataObject) -> None:
    """Envelopes of random bytes, or of a description with some bytes overwritten, raise AuditError and nothing else."""
    raw = bytearray(framed(bytes(noise)) if data.draw(st.booleans()) else one_text_many_times(2, 10))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for read in (decode_parts, decode_header):
        with pytest.raises(AuditError):
            read(bytes(raw))
