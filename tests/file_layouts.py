"""Small files in the layouts that people really have, each with its mapping and the payments that it means.

The layouts are those of public data sets and exports of tools; the values are made up here.
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Layout:
    """A file and what it means.

    payments: fields by name, in the order in which they are read; time in the form 2024-01-01T00:00:00Z ·
    refused: row and field (None: the whole row) of each refused one, by row · labels: 1, 0 or None
    """

    name: str
    content: bytes | Callable[[Path], None]
    mapping: str
    payments: list[dict[str, Any]]
    labels: list[int | None] = field(default_factory=list)
    refused: list[tuple[int, str | None]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """The file in `folder`."""
        path = folder / self.name
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content)
        return path


def p(payment_id: str, time: str, minor: int, currency: str = "EUR", **fields: Any) -> dict[str, Any]:
    """An expected payment."""
    return {"payment_id": payment_id, "event_time": time, "amount_minor": minor, "currency": currency, **fields}


def parquet(columns: dict[str, Any]) -> Callable[[Path], None]:
    """Writes the columns as Parquet."""
    return lambda path: pq.write_table(pa.table(columns), path)


def zstd(text: str) -> Callable[[Path], None]:
    """Writes the text packed."""

    def write(path: Path) -> None:
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(text.encode())

    return write


ROW_NUMBER = 'payment_id: {sql: "row_number() over ()"}\n'
EUR = "currency: {constant: EUR}\n"
SIMPLE = "payment_id: id\nevent_time: ts\namount: amount\n" + EUR
T1, T2, T3 = (f"2024-03-01T1{hour}:00:00Z" for hour in (0, 1, 2))
UUID = "00010203-0405-0607-0809-0a0b0c0d0e0f"
RFC = "2024-03-01T10:00:00Z"

LAYOUTS = [
    Layout(
        "steps.csv",
        b"step,type,amount,nameOrig,nameDest,isFraud\n1,PAYMENT,12.50,C1,M1,0\n1,TRANSFER,8.00,C2,C3,1\n26,CASH_OUT,3.05,C1,C4,0\n",
        ROW_NUMBER + "event_time: {column: step, unit: h, start: 2024-01-01T00:00:00Z}\namount: amount\n" + EUR
        + "customer_id: nameOrig\nlabel: isFraud\nattributes: {type: type}\n",
        [
            p("1", "2024-01-01T01:00:00Z", 1250, customer_id="C1", attributes={"type": "PAYMENT"}),
            p("2", "2024-01-01T01:00:00Z", 800, customer_id="C2", attributes={"type": "TRANSFER"}),
            p("3", "2024-01-02T02:00:00Z", 305, customer_id="C1", attributes={"type": "CASH_OUT"}),
        ],
        [0, 1, 0],
    ),
    Layout(
        "seconds.csv",
        b'"Time","V1","V2","Amount","Class"\n0,-1.25,0.5,10.5,"0"\n0,1,-0.25,2.69,"1"\n172787,0.1,1e-3,0,"0"\n',
        ROW_NUMBER + "event_time: {column: Time, unit: s, start: 2013-09-01}\namount: Amount\n" + EUR
        + "label: Class\nattributes: {V1: V1, V2: V2}\n",
        [
            p("1", "2013-09-01T00:00:00Z", 1050, attributes={"V1": -1.25, "V2": 0.5}),
            p("2", "2013-09-01T00:00:00Z", 269, attributes={"V1": 1.0, "V2": -0.25}),
            p("3", "2013-09-02T23:59:47Z", 0, attributes={"V1": 0.1, "V2": 0.001}),
        ],
        [0, 1, 0],
    ),
    Layout(
        "start_by_sql.csv",
        b"day,eur\n0,1\n400,2\n",
        ROW_NUMBER + "event_time: {sql: \"timestamp '2024-01-01' + day::int * interval 1 hour\"}\namount: eur\n" + EUR,
        [p("1", "2024-01-01T00:00:00Z", 100), p("2", "2024-01-17T16:00:00Z", 200)],
    ),
    Layout(
        "columns.csv",
        b"User,Card,Year,Month,Day,Time,Amount,Merchant Name,MCC,Errors?,Is Fraud?\n"
        b"7,0,2019,9,1,06:21,$134.09,3100000000000000001,5300,,No\n"
        b'7,1,2019,9,1,06:42,$-38.48,-72,742,Bad PIN,Yes\n8,0,2019,9,1,06:50,"$1,034.00",5,742,,No\n',
        ROW_NUMBER + 'event_time: {column: [Year, Month, Day, Time], format: "%Y %m %d %H:%M"}\n'
        'amount: {column: Amount, currency_sign: "$", thousands_mark: ","}\ncurrency: {constant: USD}\n'
        "customer_id: {sql: User || '-' || Card}\nmerchant_id: Merchant Name\nmcc: MCC\nlabel: Is Fraud?\n",
        [
            p(
                "1", "2019-09-01T06:21:00Z", 13409, "USD",
                customer_id="7-0", merchant_id="3100000000000000001", mcc="5300",
            ),
            p("3", "2019-09-01T06:50:00Z", 103400, "USD", customer_id="8-0", merchant_id="5", mcc="0742"),
        ],
        [0, 0],
        [(2, "amount_minor")],
    ),
    Layout(
        "refunds.csv",
        b"id,ts,amount\n1,2024-03-01T10:00:00Z,5.00\n2,2024-03-01T11:00:00Z,-5.00\n",
        "payment_id: id\nevent_time: ts\namount: {column: amount, refunds: attribute}\n" + EUR,
        [p("1", T1, 500, attributes={"refund": False}), p("2", T2, 500, attributes={"refund": True})],
    ),
    Layout(
        "quoted.csv",
        b"step,customer,merchant,category,amount,fraud\n0,'C11','M21','es_travel',4.55,0\n1,'C12','M21','es_food',39.68,1\n",
        ROW_NUMBER + "event_time: {column: step, unit: d, start: 2024-01-01}\namount: amount\n" + EUR
        + "customer_id: customer\nlabel: fraud\n",
        [
            p("1", "2024-01-01T00:00:00Z", 455, customer_id="C11"),
            p("2", "2024-01-02T00:00:00Z", 3968, customer_id="C12"),
        ],
        [0, 1],
    ),
    Layout(
        "german.csv",
        "Id;Zeit;Betrag;Händler;Betrug\r\n1;31.03.2024 02:30:00;1.234,56;Müller;N\r\n"
        "2;27.10.2024 02:30:00;0,05;Bäcker;J\r\n3;01.07.2024 12:00:00;1.234,50;Müller;N\r\n".encode("cp1252"),
        'payment_id: Id\nevent_time: {column: Zeit, format: "%d.%m.%Y %H:%M:%S"}\n'
        'amount: {column: Betrag, decimal_mark: ","}\n' + EUR
        + "merchant_id: Händler\nlabel: Betrug\ntime_zone: Europe/Berlin\nrepeated_hour: earlier\n",
        [
            p("3", "2024-07-01T10:00:00Z", 123450, merchant_id="Müller"),
            p("2", "2024-10-27T00:30:00Z", 5, merchant_id="Bäcker"),
        ],
        [0, 1],
        [(1, "event_time")],
    ),
    Layout(
        "repeated_hour.csv",
        b"id,ts,amount\n1,2024-10-27 02:30:00,1\n2,2024-10-27 03:30:00,1\n3,2024-10-27T02:30:00+01:00,1\n",
        SIMPLE + "time_zone: Europe/Berlin\n",
        [p("3", "2024-10-27T01:30:00Z", 100), p("2", "2024-10-27T02:30:00Z", 100)],
        refused=[(1, "event_time")],
    ),
    Layout(
        "utf16.csv",
        codecs.BOM_UTF16_LE + "id\tts\tamount\n1\t2024-05-01T00:00:00+02:00\t7.00\n".encode("utf-16-le"),
        SIMPLE,
        [p("1", "2024-04-30T22:00:00Z", 700)],
    ),
    Layout(
        "bom.csv", codecs.BOM_UTF8 + b"id,ts,amount\n1,2024-03-01T10:00:00Z,7\n", SIMPLE, [p("1", T1, 700)]
    ),
    Layout(
        "latin2.csv",
        "id,ts,amount,shop\n1,2024-03-01T10:00:00Z,7,Żabka\n".encode("iso-8859-2"),
        SIMPLE + "merchant_id: shop\nencoding: iso-8859-2\n",
        [p("1", T1, 700, merchant_id="Żabka")],
    ),
    Layout(
        "floats.csv",
        b"id,ts,amount,cust,mcc,fraud\n1,2024-03-01T10:00:00Z,1.5,4532.0,742.0,0.0\n2,2024-03-01T11:00:00Z,2.5,,,1.0\n",
        SIMPLE + "customer_id: cust\nmcc: mcc\nlabel: fraud\n",
        [p("1", T1, 150, customer_id="4532", mcc="0742"), p("2", T2, 250)],
        [0, 1],
    ),
    Layout(
        "floats.parquet",
        parquet({
            "id": [1, 2], "ts": [T1, T2], "amount": [1.5, 2.5], "cust": [4532.0, None], "mcc": [742.0, None],
            "fraud": [0.0, 1.0],
        }),
        SIMPLE + "customer_id: cust\nmcc: mcc\nlabel: fraud\n",
        [p("1", T1, 150, customer_id="4532", mcc="0742"), p("2", T2, 250)],
        [0, 1],
    ),
    Layout(
        "floats.jsonl",
        b'{"id":1,"ts":"2024-03-01T10:00:00Z","amount":1.5,"cust":4532.0,"mcc":742.0,"fraud":0.0}\n'
        b'{"id":2,"ts":"2024-03-01T11:00:00Z","amount":2.5,"cust":null,"mcc":null,"fraud":1.0}\n',
        SIMPLE + "customer_id: cust\nmcc: mcc\nlabel: fraud\n",
        [p("1", T1, 150, customer_id="4532", mcc="0742"), p("2", T2, 250)],
        [0, 1],
    ),
    Layout(
        "flags.csv",
        b"id,ts,amount,cust,three_ds,vip\n1,2024-03-01T10:00:00Z,1.0,c1,True,True\n2,2024-03-01T11:00:00Z,2.0,NULL,no,\n"
        b"3,2024-03-01T12:00:00Z,3.0,\\N,Y,False\n",
        SIMPLE + "customer_id: cust\nattributes: {three_ds: {boolean: three_ds}, vip: vip}\n",
        [
            p("1", T1, 100, customer_id="c1", attributes={"three_ds": True, "vip": True}),
            p("2", T2, 200, attributes={"three_ds": False}),
            p("3", T3, 300, attributes={"three_ds": True, "vip": False}),
        ],
    ),
    Layout(
        "ragged.csv",
        b"id,ts,amount,cust\na1,2024-03-01T10:00:00Z,1.00,c1\na2,2024-03-01T10:00:01Z,4111 1111 1111 1111,c1\n"
        b"a3,2024-03-01T10:00:02Z,1.00,4111111111111111,extra\na4,2024-03-01T10:00:03Z\n",
        SIMPLE + "customer_id: cust\n",
        [p("a1", T1, 100, customer_id="c1")],
        refused=[(2, "amount"), (3, None), (4, None)],
    ),
    Layout(
        "nested.jsonl.gz",
        gzip.compress(
            b'{"id": "e1", "at": {"ms": 1709287200000}, "amount": {"value": 1099, "currency": "eur"}, "f": ["a"]}\n\n'
            b'{"id": "e2", "at": {"ms": 1709290800000}, "amount": {"value": 500, "currency": "JPY"}}\nno json\n'
        ),
        "payment_id: id\nevent_time: at.ms\namount_minor: amount.value\ncurrency: amount.currency\n",
        [p("e1", T1, 1099), p("e2", T2, 500, "JPY")],
        refused=[(4, None)],
    ),
    Layout(
        "list.json",
        json.dumps([{"id": "l1", "ts": RFC, "amount": "1.10", "who": {"id": 7}}], indent=2).encode(),
        SIMPLE + "customer_id: who.id\n",
        [p("l1", T1, 110, customer_id="7")],
    ),
    Layout("packed.csv.zst", zstd("id,ts,amount\n1,2024-03-01T10:00:00Z,7\n"), SIMPLE, [p("1", T1, 700)]),
    Layout(
        "pipes.txt",
        b"id|ts|amount\n1|01/03/2024 10:00|1 200.5\n",
        'payment_id: id\nevent_time: {column: ts, format: "%d/%m/%Y %H:%M"}\n'
        'amount: {column: amount, thousands_mark: " ", round: true}\n' + EUR + 'csv: {delimiter: "|"}\n',
        [p("1", T1, 120050)],
    ),
    Layout(
        "headless.csv",
        b"1,2024-03-01T10:00:00Z,7\n",
        "payment_id: column0\nevent_time: column1\namount: column2\n" + EUR + "csv: {header: false}\n",
        [p("1", T1, 700)],
    ),
    Layout(
        "rounded.csv",
        b"id,ts,amount\n1,2024-03-01T10:00:00Z,1.23456\n2,2024-03-01T11:00:00Z,1.005\n",
        "payment_id: id\nevent_time: ts\namount: {column: amount, round: true}\n" + EUR,
        [p("1", T1, 123), p("2", T2, 101)],
    ),
    Layout(
        "fine.csv",
        b"id,ts,amount\n1,2024-03-01T10:00:00Z,1.23456\n2,2024-03-01T11:00:00Z,1.50\n",
        SIMPLE,
        [p("2", T2, 150)],
        refused=[(1, "amount")],
    ),
    Layout(
        "date_and_time.parquet",
        parquet({"id": ["a"], "d": ["01.03.2024"], "t": ["11:00"], "amount": [1.0]}),
        "payment_id: id\nevent_time: {sql: \"strptime(d || ' ' || t, '%d.%m.%Y %H:%M')\"}\namount: amount\n" + EUR
        + "time_zone: Europe/Berlin\n",
        [p("a", T1, 100)],
    ),
    Layout(
        "bad_cell_in_sql.csv",
        b"id,d,amount\n1,2024-03-01,1\n2,yesterday,1\n3,,1\n",
        "payment_id: id\nevent_time: {sql: \"strptime(d || ' 10', '%Y-%m-%d %H')\"}\namount: amount\n" + EUR,
        [p("1", T1, 100)],
        refused=[(2, "event_time"), (3, "event_time")],
    ),
    Layout(
        "where.csv",
        b"id,ts,amount,status\n1,2024-03-01T10:00:00Z,1,ok\n2,2024-03-01T11:00:00Z,2,declined\n3,2024-03-01T12:00:00Z,x,ok\n",
        SIMPLE + "where: \"status <> 'declined'\"\n",
        [p("1", T1, 100)],
        refused=[(3, "amount")],
    ),
    Layout(
        "words.csv",
        b"id,ts,amount,status\n1,2024-03-01T10:00:00Z,1,chargeback\n2,2024-03-01T11:00:00Z,2,settled\n3,2024-03-01T12:00:00Z,2,\n",
        SIMPLE + "label: {column: status, fraud: [chargeback], genuine: [settled]}\n",
        [p("1", T1, 100), p("2", T2, 200), p("3", T3, 200)],
        [1, 0, None],
    ),
    Layout(
        "hashed.csv",
        b"id,ts,amount,mail\n1,2024-03-01T10:00:00Z,1,a@b\n",
        SIMPLE + "customer_id: {sql: md5(mail)}\n",
        [p("1", T1, 100, customer_id="a1ca0ed6e42a23f4758e8a3f6b54de58")],
    ),
    Layout(
        "epochs.jsonl",
        b'{"id":"a","ts":1709287200,"amount":"1"}\n{"id":"b","ts":1709290800000,"amount":"1"}\n'
        b'{"id":"c","ts":1709294400000000,"amount":"1"}\n',
        SIMPLE,
        [p("a", T1, 100), p("b", T2, 100), p("c", T3, 100)],
    ),
    Layout(
        "currencies.csv",
        b"id,ts,amount,cur\n1,2024-03-01T10:00:00Z,1200,jpy\n2,2024-03-01T11:00:00Z,0.007,KWD\n3,2024-03-01T12:00:00Z,1,XYZ\n",
        "payment_id: id\nevent_time: ts\namount: amount\ncurrency: cur\n",
        [p("1", T1, 1200, "JPY"), p("2", T2, 7, "KWD")],
        refused=[(3, "currency")],
    ),
    Layout(
        "uuids.parquet",
        parquet({
            "id": pa.array([bytes(range(16))], pa.uuid()) if hasattr(pa, "uuid") else [UUID],
            "ts": [T1], "amount": [1.0],
        }),
        SIMPLE,
        [p(UUID, T1, 100)],
    ),
    Layout(
        "nothing.csv",
        b"id,ts,amount,cust\n1,2024-03-01T10:00:00Z,1,n/a\n2,2024-03-01T11:00:00Z,1,NULL\n",
        SIMPLE + 'customer_id: cust\nnothing: ["", "n/a"]\n',
        [p("1", T1, 100), p("2", T2, 100, customer_id="NULL")],
    ),
    Layout(
        "it's [odd] *name*.csv", b"id,ts,amount\n1,2024-03-01T10:00:00Z,7\n", SIMPLE, [p("1", T1, 700)]
    ),
]  # fmt: skip
