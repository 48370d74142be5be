"""What merchants sell: categories with their code, price, opening hours and channels, and the channels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Channel(IntEnum):
    """How a payment is made. The lower-case name is the contract's `channel`."""

    POS = 0
    ECOM = 1
    ATM = 2
    MOTO = 3


class Site(IntEnum):
    """Where a merchant takes payments: a shop with terminals, a web shop without, a cash machine."""

    SHOP = 0
    ONLINE = 1
    ATM = 2


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of merchant. `price_eur` is the median payment, `spread` the sigma of its logarithm; hours are local,
    [open, close).
    """

    name: str
    mcc: str
    site: Site
    weight: float
    price_eur: float
    spread: float
    open_h: int = 0
    close_h: int = 24
    resale: float = 1.0  # how much a thief prefers it: goods that turn into cash
    moto_share: float = 0.0  # payments taken by telephone or letter


CATEGORIES = (
    Category("grocery", "5411", Site.SHOP, 30, 28, 0.55, 7, 22),
    Category("bakery", "5462", Site.SHOP, 12, 6, 0.40, 6, 19),
    Category("restaurant", "5812", Site.SHOP, 16, 32, 0.45, 11, 24, 1.0, 0.02),
    Category("fast food", "5814", Site.SHOP, 12, 12, 0.35, 10, 24),
    Category("bar", "5813", Site.SHOP, 5, 18, 0.50, 16, 24),
    Category("fuel", "5541", Site.SHOP, 10, 52, 0.35),
    Category("pharmacy", "5912", Site.SHOP, 7, 17, 0.55, 8, 20),
    Category("clothing", "5651", Site.SHOP, 8, 48, 0.55, 10, 20, 3.0),
    Category("electronics", "5732", Site.SHOP, 4, 130, 0.80, 10, 20, 20.0),
    Category("jewellery", "5944", Site.SHOP, 1.5, 170, 0.80, 10, 19, 20.0),
    Category("hardware", "5251", Site.SHOP, 4, 38, 0.65, 8, 20),
    Category("hotel", "7011", Site.SHOP, 3, 125, 0.50, 0, 24, 2.0, 0.10),
    Category("transit", "4111", Site.SHOP, 8, 8, 0.60, 5, 24),
    Category("marketplace", "5999", Site.ONLINE, 26, 34, 0.75, resale=2.0),
    Category("digital goods", "5816", Site.ONLINE, 16, 7, 0.70),
    Category("streaming", "4899", Site.ONLINE, 10, 11, 0.25),
    Category("web clothing", "5691", Site.ONLINE, 12, 55, 0.55, resale=3.0),
    Category("web electronics", "5734", Site.ONLINE, 6, 140, 0.80, resale=12.0),
    Category("travel agency", "4722", Site.ONLINE, 5, 230, 0.70, resale=5.0, moto_share=0.10),
    Category("food delivery", "4215", Site.ONLINE, 14, 26, 0.35),
    Category("charity", "8398", Site.ONLINE, 3, 15, 0.80),
    Category("gift cards", "5947", Site.ONLINE, 3, 40, 0.60, resale=20.0),
    Category("cash machine", "6011", Site.ATM, 1, 80, 0.60, resale=6.0),
)
