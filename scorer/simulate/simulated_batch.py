"""Simulated payments with ids, order and labels: the columns, and their forms on the topics."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from scorer.simulate.catalogue import CATEGORIES, Channel
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.geography import EUR_PER_UNIT
from scorer.simulate.payment_rows import Rows
from scorer.simulate.population import Population
from scorer.simulate.randomness import FloatArray, IntArray, scramble48

AMOUNT_MINOR_MAX = 99_999_999

_MCC = [category.mcc for category in CATEGORIES]
_CHANNEL = [channel.name.lower() for channel in Channel]
_IP_BASE = (100 << 24) | (64 << 16)


@dataclass(slots=True)
class SimulatedBatch:
    """Payments in event-time order, as columns of length n. Codes count the population's customers, merchants and so
    on from 0.

    `fraud`, `kind` and `label_known_at_ms` are the truth about the payments, never part of them. A label may be wrong
    (a false report).
    """

    population: Population
    payment: npt.NDArray[np.uint64]  # 48-bit token of the payment id
    event_time_ms: IntArray
    amount_minor: IntArray
    customer: npt.NDArray[np.int32]
    card: npt.NDArray[np.uint64]  # 48-bit token
    merchant: npt.NDArray[np.int32]
    terminal: npt.NDArray[np.int32]  # -1 none
    device: IntArray  # 48-bit token, -1 none
    ip: npt.NDArray[np.int32]  # offset into 100.64.0.0/10, -1 none
    channel: npt.NDArray[np.int8]  # Channel
    country: npt.NDArray[np.int16]  # the customer's
    merchant_country: npt.NDArray[np.int16]
    currency: npt.NDArray[np.int16]  # the country whose currency it is
    three_ds: npt.NDArray[np.int8]  # attribute of ecom payments, written where true: strong authentication; -1 none
    kind: npt.NDArray[np.int8]  # FraudKind
    label: npt.NDArray[np.int8]  # the reported label: 1 fraud, 0 genuine, -1 not reported
    label_known_at_ms: IntArray  # -1 where not reported

    def __len__(self) -> int:
        return len(self.event_time_ms)

    @property
    def fraud(self) -> npt.NDArray[np.bool_]:
        """True where the payment truly is a fraud."""
        return np.asarray(self.kind != FraudKind.GENUINE)

    def slice(self, start: int, stop: int) -> SimulatedBatch:
        """Rows start <= i < stop, as views."""
        return SimulatedBatch(self.population, *(getattr(self, f.name)[start:stop] for f in fields(self)[1:]))

    def column(self, name: str) -> npt.NDArray[np.object_] | FloatArray:
        """A contract field by name: object array of str | None, or float64 with NaN for positions. Raises KeyError."""
        if name in POSITION_FIELDS:
            return self._position(name)
        if name not in TEXT_FIELDS:
            raise KeyError(f"no text or position field {name!r}; there are {', '.join(TEXT_FIELDS + POSITION_FIELDS)}")
        column = np.empty(len(self), dtype=object)
        column[:] = getattr(self, f"_{name}")()
        return column

    def keys(self) -> list[bytes]:
        """Record keys on the payments topic: the customer's id."""
        return [text.encode() for text in self._customer_id()]

    def to_json(self) -> list[bytes]:
        """Payments per the contract: compact JSON, one value a row, 280-320 bytes and 12 to 14 fields."""
        out: list[bytes] = []
        merchants = self.population.merchants
        latitudes, longitudes = merchants.latitude[self.merchant].tolist(), merchants.longitude[self.merchant].tolist()
        rows = zip(
            self._who(), self._what(), self.channel.tolist(), self.terminal.tolist(), latitudes, longitudes, strict=True
        )
        devices = zip(self.device.tolist(), self.ip.tolist(), self.three_ds.tolist(), strict=True)
        for (who, what, channel, terminal, latitude, longitude), (device, ip, three_ds) in zip(
            rows, devices, strict=True
        ):
            if channel == Channel.ECOM:
                web = f',"device_id":"d_{device:012x}","ip":"{_address(ip)}"'
                strong = ',"attributes":{"three_ds":true}' if three_ds == 1 else ""
                payment = f"{who}{web}{what}{strong}}}"
            elif channel == Channel.MOTO:
                at = f',"terminal_id":"t_{terminal}"' if terminal >= 0 else ""
                payment = f'{who}{at}{what},"merchant_latitude":{latitude},"merchant_longitude":{longitude}}}'
            else:
                payment = f'{who},"terminal_id":"t_{terminal}"{what},"latitude":{latitude},"longitude":{longitude}}}'
            out.append(payment.encode())
        return out

    def labels_json(self) -> list[bytes]:
        """Control-topic records of the payments that are reported, in the payments' order, not by `known_at`."""
        rows = np.flatnonzero(self.label_known_at_ms >= 0)
        columns = (self.payment, self.label, self.label_known_at_ms, self.event_time_ms)
        return [
            f'{{"type":"label","payment_id":"p_{payment:012x}","fraud":{"true" if label else "false"},'
            f'"known_at":{known_at},"event_time":{time}}}'.encode()
            for payment, label, known_at, time in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]

    def _who(self) -> list[str]:
        """The fields before terminal_id, with the opening brace."""
        currencies = self.population.places.country_currency
        columns = (self.payment, self.amount_minor, self.currency, self.customer, self.card, self.merchant)
        return [
            f'{{"payment_id":"p_{payment:012x}","event_time":"{time}Z","amount_minor":{amount},'
            f'"currency":"{currencies[currency]}","customer_id":"c_{customer}","card_token":"tok_{card:012x}",'
            f'"merchant_id":"m_{merchant}"'
            for time, payment, amount, currency, customer, card, merchant in zip(
                self._event_time(), *(column.tolist() for column in columns), strict=True
            )
        ]

    def _what(self) -> list[str]:
        """The fields from mcc to merchant_country, with the comma before them."""
        countries = self.population.places.country_code
        columns = (self.population.merchants.category[self.merchant], self.channel, self.country, self.merchant_country)
        return [
            f',"mcc":"{_MCC[category]}","channel":"{_CHANNEL[channel]}","country":"{countries[country]}",'
            f'"merchant_country":"{countries[there]}"'
            for category, channel, country, there in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _event_time(self) -> list[str]:
        return np.datetime_as_string(self.event_time_ms.astype("M8[ms]")).tolist()  # type: ignore[no-any-return]

    def _payment_id(self) -> list[str]:
        return [f"p_{v:012x}" for v in self.payment.tolist()]

    def _currency(self) -> list[str]:
        return [self.population.places.country_currency[v] for v in self.currency.tolist()]

    def _customer_id(self) -> list[str]:
        return [f"c_{v}" for v in self.customer.tolist()]

    def _account_id(self) -> list[None]:
        return [None] * len(self)

    def _card_token(self) -> list[str]:
        return [f"tok_{v:012x}" for v in self.card.tolist()]

    def _merchant_id(self) -> list[str]:
        return [f"m_{v}" for v in self.merchant.tolist()]

    def _terminal_id(self) -> list[str | None]:
        return [None if v < 0 else f"t_{v}" for v in self.terminal.tolist()]

    def _device_id(self) -> list[str | None]:
        return [None if v < 0 else f"d_{v:012x}" for v in self.device.tolist()]

    def _ip(self) -> list[str | None]:
        return [None if v < 0 else _address(v) for v in self.ip.tolist()]

    def _mcc(self) -> list[str]:
        return [_MCC[v] for v in self.population.merchants.category[self.merchant].tolist()]

    def _channel(self) -> list[str]:
        return [_CHANNEL[v] for v in self.channel.tolist()]

    def _country(self) -> list[str]:
        return [self.population.places.country_code[v] for v in self.country.tolist()]

    def _merchant_country(self) -> list[str]:
        return [self.population.places.country_code[v] for v in self.merchant_country.tolist()]

    def _position(self, name: str) -> FloatArray:
        merchants = self.population.merchants
        remote = self.channel == Channel.MOTO
        shown = remote if name.startswith("merchant_") else ~remote & (self.channel != Channel.ECOM)
        values = merchants.latitude if name.endswith("latitude") else merchants.longitude
        return np.where(shown, values[self.merchant], np.nan)


def _address(offset: int) -> str:
    a = _IP_BASE + offset
    return f"{a >> 24}.{a >> 16 & 255}.{a >> 8 & 255}.{a & 255}"


def finish(
    population: Population,
    rows: Rows,
    *,
    number: IntArray,
    label: npt.NDArray[np.int8],
    known_at_ms: IntArray,
    key: int,
) -> SimulatedBatch:
    """The batch of `rows`, already in event-time order; `number` counts payments over all of time, `key` is the
    world's own.
    """
    country = population.customers.country[rows.customer]
    merchant_country = population.merchants.country[rows.merchant]
    remote = (rows.channel == Channel.ECOM) | (rows.channel == Channel.MOTO)
    currency = np.where(remote, country, merchant_country)
    return SimulatedBatch(
        population=population,
        payment=scramble48(number, key),
        event_time_ms=rows.time_ms,
        amount_minor=_amount_minor(population, rows, currency),
        customer=rows.customer,
        card=scramble48((rows.customer.astype(np.int64) << 3) | rows.card, key ^ 0x5A5A),
        merchant=rows.merchant,
        terminal=rows.terminal,
        device=np.where(rows.device >= 0, scramble48(np.maximum(rows.device, 0), key ^ 0x3C3C).astype(np.int64), -1),
        ip=rows.ip,
        channel=rows.channel,
        country=country,
        merchant_country=merchant_country,
        currency=currency,
        three_ds=rows.three_ds,
        kind=rows.kind,
        label=label,
        label_known_at_ms=known_at_ms,
    )


def _amount_minor(population: Population, rows: Rows, currency: npt.NDArray[np.int16]) -> IntArray:
    """Minor units of the payment's currency: notes at cash machines, many prices one cent below a round one, at least
    1.
    """
    places = population.places
    unit = places.minor_per_unit[currency]
    minor = np.rint(rows.amount_eur * places.minor_per_eur[currency]).astype(np.int64)
    # The smallest note: ten units of a currency like EUR, 1000 of one like JPY.
    magnitude = np.array([10.0 ** np.floor(np.log10(1 / EUR_PER_UNIT[c]) + 0.5) for c in places.country_currency])
    note = np.maximum(10 * magnitude, 5).astype(np.int64)[currency] * unit
    cash = rows.channel == Channel.ATM
    minor = np.where(cash, np.maximum((minor + note // 2) // note, 1) * note, minor)
    charm = ~cash & (unit == 100) & (minor >= 200) & (rows.time_ms % 3 == 0)
    minor = np.where(charm, (minor + 50) // 100 * 100 - 1, minor)
    return np.clip(minor, 1, AMOUNT_MINOR_MAX)
