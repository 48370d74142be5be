"""Java and Apache Kafka's jars: found on this machine, or fetched once by Maven into a cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from scorer.local_services.service_errors import DownloadError
from scorer.runtime import assets

KAFKA_VERSION = "4.1.0"  # as in deploy/kafka/pom.xml; a test compares them
JAVA_VERSION_MIN = 17
_JAVA_ANSWER_TIMEOUT_S = 20.0
_DOWNLOAD_TIMEOUT_S = 900.0  # 54 MB in 90 files, on a slow line


def find_java(environment: Mapping[str, str]) -> tuple[Path | None, str]:
    """The `java` of JAVA_HOME or PATH when it is 17 or later, else None and the reason."""
    home = environment.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    found = found or shutil.which("java", path=environment.get("PATH", ""))
    if found is None:
        return None, "no `java` on PATH and no JAVA_HOME"
    try:
        # macOS has a `java` that only prints where to get one: its output decides, not its presence.
        printed = subprocess.run(
            [found, "-version"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_JAVA_ANSWER_TIMEOUT_S,
            check=False,
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{found} does not run: {type(error).__name__}"
    version = re.search(r'version "(?:1\.)?(\d+)', printed)
    if version is None:
        return None, f"{found} does not print its version"
    if int(version[1]) < JAVA_VERSION_MIN:
        return None, f"{found} is Java {version[1]}, and Kafka {KAFKA_VERSION} needs {JAVA_VERSION_MIN} or later"
    return Path(found), ""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """The folder of these jars. Named by the pom's content too: another list of jars never meets a running broker's."""
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".cache")
    content = hashlib.sha256(assets.path("deploy/kafka/pom.xml").read_bytes()).hexdigest()
    return Path(base) / "fraud-scorer" / f"kafka-{KAFKA_VERSION}" / content[:12]


def cached(environment: Mapping[str, str]) -> bool:
    """Whether the jars are here already, so that Maven is not needed."""
    return cache_folder(environment).is_dir()


def find_maven(environment: Mapping[str, str]) -> str | None:
    """The `mvn` command of PATH, or None."""
    return shutil.which("mvn", path=environment.get("PATH", ""))


def ensure_jars(environment: Mapping[str, str], report: Callable[[str], None]) -> Path:
    """The folder with Kafka's jars, complete. Raises DownloadError with the end of Maven's output.

    The folder appears by one rename when all of it is there: an interrupted download leaves nothing that seems whole.
    A lock lets the second of two processes wait for the first and find its work done.
    """
    folder = cache_folder(environment)
    if folder.is_dir():
        return folder
    maven = find_maven(environment)
    if maven is None:
        raise DownloadError("no `mvn` on PATH to fetch Kafka with; install Maven, or give an address or Docker")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        if folder.is_dir():
            return folder
        for left_over in folder.parent.glob("download-*"):  # under the lock no other process can be using one
            shutil.rmtree(left_over, ignore_errors=True)
        report(f"fetching Apache Kafka {KAFKA_VERSION} with Maven (54 MB, once) into {folder}")
        fetching = Path(tempfile.mkdtemp(prefix="download-", dir=folder.parent))
        try:
            _fetch(maven, fetching, environment)
            fetching.chmod(0o755)
            fetching.rename(folder)
        finally:
            shutil.rmtree(fetching, ignore_errors=True)
    return folder


def _fetch(maven: str, folder: Path, environment: Mapping[str, str]) -> None:
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    pom = str(assets.path("deploy/kafka/pom.xml"))
    process = subprocess.Popen(
        [maven, "--batch-mode", "--quiet", "--file", pom, *goal],
        cwd=folder,
        # A process of seconds: without the second compiler it takes half the CPU (1.9 s of 4.0 s, measured).
        env={"MAVEN_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # `mvn` is a script: its whole group must be ended, not the shell alone
    )
    try:
        output, _ = process.communicate(timeout=_DOWNLOAD_TIMEOUT_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DownloadError(f"Maven took over {_DOWNLOAD_TIMEOUT_S:.0f} s; is Maven Central in reach?") from None
        raise
    if process.returncode != 0 or not any(folder.glob("kafka_2.13-*.jar")):
        end = "\n".join(f"    {line}" for line in output.splitlines()[-15:])
        raise DownloadError(f"Maven could not fetch Apache Kafka {KAFKA_VERSION} (exit {process.returncode}):\n{end}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock that ends with the process. Waits as long as the other's download may take."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
