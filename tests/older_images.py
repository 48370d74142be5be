"""Images of states as earlier releases wrote them."""

from __future__ import annotations

from features.engine_image import FORMAT, TIMELESS_FORMAT, Image


def as_format_3(image: Image) -> Image:
    """An engine's image without the times from which its labels are known."""
    assert image.meta["format"] == FORMAT
    arrays = {name: array for name, array in image.arrays.items() if not name.startswith("known-")}
    return Image({**image.meta, "format": TIMELESS_FORMAT}, arrays | {"orphans": image.arrays["orphans"][:, :3].copy()})
