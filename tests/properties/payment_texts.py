"""Payments as text: good ones, every odd JSON token, and hypothesis strategies for what lies between."""

# ruff: noqa: E501, SIM905, RUF005 - the tables below read better unbroken

from __future__ import annotations

import json

from hypothesis import strategies as st

from schemas.payment import Payment

FIELDS = tuple(Payment.model_fields)
GOOD = {
    "payment_id": "p_7f3a19",
    "event_time": "2026-01-01T12:30:00.250Z",
    "amount_minor": 5716,
    "currency": "EUR",
    "customer_id": "c_000042",
    "account_id": "a_000042",
    "card_token": "tok_5e1f00c2",
    "merchant_id": "m_0815",
    "terminal_id": "t_3311",
    "device_id": "d_91c0",
    "ip": "192.0.2.17",
    "mcc": "5411",
    "channel": "ecom",
    "country": "DE",
    "merchant_country": "FR",
    "latitude": 52.52,
    "longitude": 13.405,
    "merchant_latitude": -48.8566,
    "merchant_longitude": 2,
    "attributes": {"basket_size": 3, "new_address": True, "wallet": "none", "share": 0.25},
}
# JSON tokens, and things that are almost JSON tokens, that any field may get.
TOKENS = (
    "null true false NaN Infinity -Infinity nul nulls truefalse [] {} [1] {\"a\":1} {\"a\":null} {\"a\":{}} [[]] \"\" \" \" \"x\" \"5\" "
    "0 -0 -0.0 0.0 1.0 1e3 1E3 1e+3 1e-3 1E400 -1E400 1e-400 5e-324 00 01 -01 +1 .5 1. 1.e3 - -- 0x10 1_000 1e 1e+ Ⅷ ٣ "
    "90 -90 90.0 90.0000000000000001 90.00001 180 -180 180.5 -1 12 999999999999 1000000000000 9999999999999 "
    "946684799999 946684800000 1767225600000 3999999999999 4000000000000 01767225600000 1767225600000.0 1.7672256e12 -1767225600000 "
    "4111111111111111 -4111111111111111 4111111111111111.0 4111111111111111.5 4.111111111111111e15 4222222222222 411111111111111 "
    "\"4111111111111111\" \"4111-1111-1111-1111\" \"4111\u00a01111\u00a01111\u00a01111\" \"4222222222222\" \"41111111111111110\" "
    "\"4111.1111.1111.1111\" \"x4111111111111111y\" \"4111_1111_1111_1111/é\" \"c4111111111111111\" \"a\u00a04111111111111111\" "
    "\"٤١١١١١١١١١١١١١١١\" \"0000000000000\" \"00000000000000000000\" "
    "9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 18446744073709551616 "
    "0.1000000000000000055511151231257827021181583404541015625 123456789012.5 1234567890123.5 2.2250738585072011e-308 "
    "\"EUR\" \"eur\" \"EURO\" \"XAU\" \"XXX\" \"ÉUR\" \"DE\" \"De\" \"5411\" \"541\" \"５４１１\" \"ecom\" \"eCom\" \"a_9\" "
    "\"2026-02-29T00:00:00Z\" \"2024-02-29T00:00:00Z\" \"2026-01-01T24:00:00Z\" \"2026-01-01T23:59:60Z\" \"2026-01-01T00:00:00\" "
    "\"2026-01-01t00:00:00Z\" \"2026-01-01T00:00:00z\" \"2026-01-01T00:00:00.Z\" \"2026-01-01T00:00:00.1234567891Z\" "
    "\"2026-01-01T00:00:00.123456789Z\" \"2026-01-01T00:00:00+01:00\" \"2026-01-01T00:00:00-23:59\" \"2026-01-01T00:00:00+24:00\" "
    "\"2026-01-01T00:00:00+0100\" \"0000-01-01T00:00:00Z\" \"9999-12-31T23:59:59-23:59\" \"2000-01-01T00:59:59+01:00\" "
    "\"1999-12-31T23:00:00-01:00\" \"2096-10-02T07:06:39.999Z\" \"2096-10-02T07:06:40Z\" \"2026-1-01T00:00:00Z\" "
    "\"::\" \"::1\" \":::\" \"1::2::3\" \"1:2:3:4:5:6:7:8\" \"1:2:3:4:5:6:7:8:9\" \"1:2:3:4:5:6:7::\" \"::2:3:4:5:6:7:8\" "
    "\"1:2:3:4:5:6:7\" \"12345::\" \"1:2:3:4:5:6:7:8::\" \"1:2:3:4::5:6:7:8\" \"::1:2:3:4:5:6:1.2.3.4\" \"::1.2.3.4\" \"1:2:3:4:5:6:1.2.3.4\" \"1:2:3:4:5:6:7:1.2.3.4\" \"::1.2.3\" \":1.2.3.4\" \"1.2.3.4:\" "
    "\"1.2.3\" \"1.2.3.4.5\" \"1.2.3.04\" \"256.1.1.1\" \"1.2.3.4.\" \"fe80::1%eth0\" \"::G\" \"1:\" \":1\" \"1::\" \"::ffff:0:0\" "
    "\"\\u0000\" \"\\ud800\" \"\\ud83d\\ude00\" \"a\\/b\" \"\\u0034111111111111111\" \"\\x\" \"\x7f\" \"\x01\" \"é\" \"\U0001f600\" \"a\"b \"unclosed"
).split(" ") + ['"4111 1111 1111 1111"', '"2026-01-01 00:00:00Z"', '"2026-01-01 00:00:00"', '"' + "x" * 128 + '"', '"' + "é" * 128 + '"',
                '"' + "é" * 129 + '"', '"' + "x" * 256 + '"', '"' + "x" * 257 + '"', '"' + "9" * 500 + '"', "9" * 39, "9" * 41, "9" * 5000, '"tab\there"',
                "[" * 40 + "]" * 40, '{"x":' * 20 + "1" + "}" * 20]  # fmt: skip


def written(fields: list[tuple[str, str]], colon: str = ":", comma: str = ",") -> bytes:
    """An object of names and JSON tokens, good or not."""
    body = comma.join(f'"{name}"{colon}{token}' for name, token in fields)
    return f"{{{body}}}".encode("utf-8", "surrogatepass")


def tokens_of(payment: dict[str, object]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value)) for name, value in payment.items()]


texts = (
    st.text(max_size=20)
    | st.text(st.sampled_from("0123456789- "), max_size=24)
    | st.lists(
        st.sampled_from(["4111", "1111", "1111", "822463", "10005", "3782", *"._/-:xaf9é\u00a0\uff14"]), max_size=9
    ).map("".join)
    | st.text(st.characters(max_codepoint=127), max_size=140)
)
numbers = (
    st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
)
times = st.datetimes().map(lambda t: json.dumps(t.isoformat() + "Z")) | st.from_regex(
    r'"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9][T ][012][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,10})?(Z|[+-][012][0-9]:[0-6][0-9])"',
    fullmatch=True,
)
attribute_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,10}", fullmatch=True) | st.text(max_size=3).map(
    lambda text: json.dumps(text)[1:-1]
)
addresses = st.ip_addresses().map(lambda address: f'"{address}"') | st.from_regex(
    r'"[0-9a-fA-F:.]{1,40}"', fullmatch=True
)


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    return json.dumps(draw(texts), ensure_ascii=draw(st.booleans()))


values = st.sampled_from(TOKENS) | json_texts() | numbers | times | addresses


@st.composite
def attributes(draw: st.DrawFn) -> str:
    pairs = draw(st.lists(st.tuples(attribute_names, values), max_size=6))
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:")]))
    return "{" + comma.join(f'"{name}"{colon}{token}' for name, token in pairs) + "}"


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A payment that is mostly good: a field or two replaced, left out, doubled or unknown; any order; any spacing."""
    names = [
        "payment_id",
        "event_time",
        "amount_minor",
        "currency",
        *draw(st.lists(st.sampled_from(FIELDS[4:]), unique=True)),
    ]
    fields = [(name, json.dumps(GOOD[name])) for name in names]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(fields) - 1))
        name = fields[at][0]
        token = draw(
            attributes()
            if name == "attributes"
            else times
            if name == "event_time"
            else addresses
            if name == "ip"
            else values
        )
        fields[at] = (name, draw(st.sampled_from([token, token, draw(values)])))
    if draw(st.integers(0, 9)) == 0:
        fields.insert(
            draw(st.integers(0, len(fields))),
            draw(st.sampled_from([*fields, ("customer", '"x"'), ("", "1"), ("payment_\\u0069d", '"x"')])),
        )
    if draw(st.integers(0, 9)) == 0:
        del fields[draw(st.integers(0, len(fields) - 1))]
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    comma, colon = draw(
        st.sampled_from(
            [(",", ":"), (", ", ": "), ("\n,\r", "\t : "), ("\f,", ":"), (",,", ":"), (",", "::")] + [(",", ":")] * 4
        )
    )
    return written(fields, colon, comma)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A record with some bytes flipped, inserted, deleted or copied."""
    raw = bytearray(draw(records()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.integers(0, 4))
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            raw[at:at] = draw(
                st.sampled_from(
                    [
                        b'"',
                        b"\\",
                        b"{",
                        b"}",
                        b"[",
                        b"]",
                        b",",
                        b":",
                        b" ",
                        b"\0",
                        b"\x7f",
                        b"\xff",
                        b"\xed\xa0\x80",
                        b"\xc3\xa9",
                        b"0",
                        b"e",
                        b"\xef\xbb\xbf",
                    ]
                )
            )
        elif kind == 2:
            del raw[at : at + draw(st.integers(1, 8))]
        elif kind == 3:
            start = draw(st.integers(0, len(raw)))
            raw[at:at] = raw[start : start + draw(st.integers(1, 30))]
        elif at < len(raw):
            raw[at] = draw(st.integers(0, 255))
    return bytes(raw)


keys = (
    st.none()
    | st.binary(max_size=20)
    | st.sampled_from(
        [b"c_000042", b"4111111111111111", b'"4111 1111 1111 1111"', b"4111111111111112", b"-4111111111111111 "]
    )
)
junk = st.none() | st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.sampled_from(
    [b"", b"\0", b"\0\0\0\0\1", b"\x01{}", b"{}", b"[]", b"1", b"null", b'"x"', b" ", b"{", b"{}{}", b"[" * 3000, b'{"a":' * 900, b" " * 4097, b'"\\' * 2000]
)  # fmt: skip
