"""The folders of this machine that a worker writes to, by its settings. A sink writes to none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from scorer.runtime.settings import PREFIX, Settings


class LocalFolder(NamedTuple):
    """`use`: log, snapshots or cache. `setting` chooses another one. It need not exist yet."""

    use: str
    path: Path
    setting: str

    @property
    def there(self) -> Path:
        """It, or the nearest folder above it that exists."""
        return next((place for place in (self.path, *self.path.parents) if place.exists()), Path("/"))


def local_folders(settings: Settings) -> Iterator[LocalFolder]:
    """Every one that the settings name for a worker; snapshots in an object store are none."""
    cache = settings.cache.expanduser()
    yield LocalFolder("cache", cache, f"{PREFIX}CACHE")
    if settings.worker.log_folder is not None:
        yield LocalFolder("log", settings.worker.log_folder.expanduser(), f"{PREFIX}WORKER__LOG_FOLDER")
    where = settings.snapshots
    if not where.every_payments and not where.every_s:
        return
    url = None if where.url is None else urlsplit(where.url.get_secret_value())
    if url is None:
        yield LocalFolder("snapshots", cache / "snapshots", f"{PREFIX}SNAPSHOTS__URL")
    elif url.scheme == "file":
        yield LocalFolder("snapshots", Path(url.path), f"{PREFIX}SNAPSHOTS__URL")
