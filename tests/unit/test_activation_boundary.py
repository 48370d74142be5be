"""What an activation names is data of somebody else: where it may lie, how it is fetched, what a bundle may hold."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.control_record import Activate
from scorer.bundle import Bundle, BundleError
from scorer.bundle.activation_signature import refusal_of, signed_activation
from scorer.bundle.bundle_errors import BundlePlaceError
from scorer.bundle.bundle_location import load_bundle
from scorer.bundle.bundle_places import Places, shown
from scorer.bundle.bundle_transfer import Transfer
from scorer.bundle.signature import public_name, sign
from scorer.errors import UsageError
from scorer.journal.activated_bundles import Bundles, BundleUnavailable
from scorer.journal.bundle_fetch import THREADS_MAX, Fetch, Refused
from scorer.pipeline.warm_up import warm_up
from scorer.runtime.settings import BundleSettings
from tests.hostile_server import HostileServer, hostile_server
from tests.unit.test_bundle import POLICY, _model_bytes, _replace, _write

DEPLOYMENT = "journal@aGJcXuZ8TG2ZNvHdEVzpOQ"
NOW_MS = 1_767_225_600_000


@pytest.fixture(scope="module")
def model() -> bytes:
    return _model_bytes()


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory, model: bytes) -> None:
    """As a worker is when it comes to activations: their deadline is not for compiling kernels."""
    warm_up(_write(tmp_path_factory.mktemp("warm") / "cards", model))


@pytest.fixture
def folder(tmp_path: Path, model: bytes) -> Path:
    _write(tmp_path / "allowed" / "cards", model)
    return tmp_path / "allowed" / "cards"


def _activation(key: Ed25519PrivateKey, **changed: Any) -> Activate:
    fields = {"bundle": "cards-1", "location": "/b", "number": 7, "expires_ms": NOW_MS, "deployment": DEPLOYMENT}
    return signed_activation(Activate(**(fields | changed)), key)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, (None, 7)),
        ({"signature": None}, ("unsigned", None)),
        ({"location": "/other"}, ("untrusted", None)),
        ({"number": 8}, ("untrusted", None)),
        ({"expires_ms": NOW_MS + 1}, ("untrusted", None)),
        ({"deployment": "journal@other"}, ("untrusted", None)),
        ({"bundle": "cards-2"}, ("untrusted", None)),
    ],
)
def test_every_field_is_signed(changed: dict[str, Any], refused: tuple[str | None, int | None]) -> None:
    """A field that is changed after signing makes the activation untrusted."""
    key = Ed25519PrivateKey.generate()
    record = _activation(key).model_copy(update=changed)
    trusted = [public_name(key.public_key())]
    assert refusal_of(record, trusted, deployment=DEPLOYMENT, last_number=6, now_ms=NOW_MS - 1) == refused


def test_a_number_is_used_once_and_an_expiry_holds() -> None:
    """One that was read, or an older one, is refused; an expired one is, and uses its number up."""
    key = Ed25519PrivateKey.generate()
    record, trusted = _activation(key), [public_name(key.public_key())]
    assert refusal_of(record, trusted, deployment=DEPLOYMENT, last_number=7, now_ms=0) == ("number_used", None)
    assert refusal_of(record, trusted, deployment="j@2", last_number=0, now_ms=0) == ("other_deployment", None)
    assert refusal_of(record, trusted, deployment=DEPLOYMENT, last_number=0, now_ms=NOW_MS) == ("expired", 7)


def test_what_the_gate_saw_is_signed(folder: Path) -> None:
    """A manifest that is changed between gate and signature is not signed."""
    seen = Bundle.load(folder).manifest_bytes
    (folder / "manifest.json").write_bytes(seen + b" ")
    with pytest.raises(BundleError, match="changed after it was verified"):
        sign(folder, Ed25519PrivateKey.generate(), seen)
    assert not (folder / "manifest.sig").exists()


@pytest.mark.parametrize(
    "location",
    [
        "github://a:b@main/x", "zip://x::/srv/bundles/a.zip", "reference://x", "data:text/plain,x", "dbfs:/x",
        "memory://x", "simplecache::s3://bundles/cards/x", "s3://bundles/cards/../other", "s3://bundles/cards-2/x",
        "s3://other/cards/x", "s3://key:secret@bundles/cards/x", "https://user:secret@host/b", "http://host/b/x",
        "https://host/b/x?token=secret", "https://host/b/x#secret", "https://host/b/%2e%2e/x", "https://host/b\\..\\x",
        "https://host.evil/b/x", "https://host:8443/b/x", "file://host/srv/bundles/x", "/srv/bundles/../other",
        "/srv/bundles-2/x", "srv/bundles/x", "", "//srv/other", "file:x", "s3:bundles/cards/x", "https:///b/x",
        "https://[::1/b/x", "local:///srv/bundles/x", "FILE:///etc", "ftp://host/b/x",
    ],
)  # fmt: skip
def test_a_place_that_is_not_allowed_is_refused_without_its_secrets(location: str) -> None:
    """Only what lies below an allowed place passes; the refusal holds nothing secret of the location."""
    places = Places(["/srv/bundles", "s3://bundles/cards", "https://host/b"])
    with pytest.raises(BundlePlaceError) as refused:
        places.of(location)
    assert "secret" not in str(refused.value)
    assert "secret" not in shown(location)


@pytest.mark.parametrize(
    "location",
    ["/srv/bundles/x", "/srv/bundles", "file:///srv/bundles/x", "s3://bundles/cards/x/y", "https://HOST/b/x/"],
)
def test_what_lies_below_an_allowed_place_passes(location: str) -> None:
    """A folder or URL below an allowed one is taken."""
    Places(["/srv/bundles", "s3://bundles/cards", "https://host/b"]).of(location)


def test_a_symlink_does_not_lead_out_of_an_allowed_folder(tmp_path: Path) -> None:
    """A folder is compared after its symlinks are followed."""
    (tmp_path / "allowed").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(BundlePlaceError):
        Places([str(tmp_path / "allowed")]).of(str(tmp_path / "allowed" / "link"))


def test_a_setting_with_a_secret_in_it_is_refused_by_its_number() -> None:
    """A place of the setting that holds credentials is named by its number alone."""
    with pytest.raises(UsageError, match="entry 2") as refused:
        Places(["/srv", "https://user:hunter2@host/b"])
    assert "hunter2" not in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "s3:", "https:", "file:", "abfss:", "zip:", "github:", "data:"]),
        st.sampled_from(["//", "/", "", "///", "//user:hunter2@", "//bundles/cards", "//[", "\\\\"]),
        st.text(alphabet="ab/.:@%?#[]\\ \x00\ud800é::", max_size=30),
    )
)
def test_any_text_as_a_location_is_a_place_or_a_refusal(text: str) -> None:
    """No text makes anything else of a location than a place below the allowed ones, or a refusal."""
    try:
        place = Places(["/srv/bundles", "s3://bundles/cards"]).of(text)
    except BundlePlaceError:
        return
    assert place.text.startswith(("/srv/bundles", "s3://bundles/cards"))
    assert "hunter2" not in shown(text)


def _rules(server: HostileServer, **changed: Any) -> BundleSettings:
    return BundleSettings(**({"locations": [server.url], "fetch_timeout_s": 1.0} | changed))


def _result(bundles: Bundles, bundle_id: str, location: str) -> Bundle | Refused:
    got: Any = bundles.begin(bundle_id, location)
    while isinstance(got, Fetch):
        time.sleep(0.01)
        got = got.result() or got
    return got  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["slow", "headers", "endless", "more", "redirect", "broken", "other"])
def test_a_hostile_server_is_a_refusal_in_time(kind: str, folder: Path) -> None:
    """Whatever a server does, the fetch ends about its deadline, few bytes are read, and its thread ends."""
    loaded = Bundle.load(folder)
    other = Bundle.load(_write(folder.parent / "other", _model_bytes(), created_at="x") and folder.parent / "other")
    with hostile_server(folder) as server:
        bundles = Bundles(other, _rules(server))
        started = time.monotonic()
        result = _result(bundles, loaded.id, f"{server.url}/{kind}")
        assert isinstance(result, Refused), result
        assert "hunter2" not in result.detail
        assert time.monotonic() - started < 60
        assert server.sent < 16 << 20
        deadline = time.monotonic() + 60
        while any(thread.name == "bundle-fetch" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = _result(Bundles(other, _rules(server, fetch_timeout_s=30.0)), loaded.id, f"{server.url}/good")
        assert isinstance(found, Bundle)
        assert found.id == loaded.id


def test_a_file_larger_than_its_kind_may_be_is_not_read_to_its_end(folder: Path) -> None:
    """Bytes are counted as they come: of a manifest at most 4 MiB, of a bundle at most what is allowed."""
    with hostile_server(folder) as server:
        with pytest.raises(BundleError, match="larger than a bundle's may be"):
            load_bundle(f"{server.url}/endless", transfer=Transfer(seconds=20))
        assert server.sent < 16 << 20
        with pytest.raises(BundleError, match="larger than a bundle's may be"):
            load_bundle(f"{server.url}/good", transfer=Transfer(seconds=20, bytes_max=2_000))


def test_hanging_fetches_are_bounded(folder: Path) -> None:
    """No more than a few fetches run or hang at a time; one more is refused at once."""
    bundle = Bundle.load(folder)
    with hostile_server(folder) as server:
        bundles = Bundles(bundle, _rules(server, fetch_timeout_s=30))
        for n in range(THREADS_MAX):
            assert isinstance(bundles.begin(f"cards-{n}", f"{server.url}/slow/{n}"), Fetch)
            assert bundles.begin(f"cards-{n}", f"{server.url}/slow/{n}") is bundles.begin(
                f"cards-{n}", f"{server.url}/slow/{n}"
            )
        refused = bundles.begin("cards-9", f"{server.url}/slow/9")
        assert isinstance(refused, Refused)
        assert refused.reason == "unreachable"


def test_a_bundle_of_another_id_or_signer_is_not_read_further(folder: Path) -> None:
    """With another id, or without a trusted signature, only the manifest and its signature are asked for."""
    bundle = Bundle.load(folder)
    with hostile_server(folder) as server:
        for wanted, keys in (("cards-000000000000", []), (bundle.id, ["ed25519:" + "A" * 43 + "="])):
            bundles = Bundles(bundle, _rules(server, trusted_keys=keys))
            del bundles.initial
            bundles.initial = Bundle.load(_other(folder, wanted))
            assert isinstance(_result(bundles, wanted, f"{server.url}/good"), Refused)
        assert {Path(path).name for path in server.asked} == {"manifest.json", "manifest.sig"}


def _other(folder: Path, name: str) -> Path:
    output = folder.parent / f"initial-{name}"
    _write(output, _model_bytes(), created_at=name)
    return output


def test_a_bundle_that_cannot_be_had_is_an_error_that_names_it(folder: Path) -> None:
    """What the journal goes on with is had, or it is an error; never another bundle."""
    bundle = Bundle.load(folder)
    bundles = Bundles(bundle, BundleSettings(locations=[str(folder.parent)]))
    with pytest.raises(BundleUnavailable, match="cards-000000000000"):
        bundles.at("cards-000000000000", str(folder))
    with pytest.raises(BundleUnavailable, match="--bundle"):
        bundles.at("cards-000000000000", "")
    assert bundles.at(bundle.id, "") is bundle


HOSTILE_YAML: dict[str, str] = {
    "deep": "flag: " + "[" * 5_000 + "]" * 5_000,
    "deep mapping": "".join(f"{' ' * n}a:\n" for n in range(2_000)),
    "deep flow mapping": "{a: " * 3_000 + "1" + "}" * 3_000,
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)),
    "itself": "name: &a [*a]\nflag: {score: 0.5}\n",
    "bool that is none": "name: !!bool maybe\n",
    "month 13": "name: 2025-13-40\n",
    "timestamp tag": "name: !!timestamp x\n",
    "int tag": "name: !!int x\n",
    "float tag": "name: !!float x\n",
    "binary": "name: !!binary é\n",
    "set": "name: !!set [a]\n",
    "pairs": "name: !!pairs [[a]]\n",
    "omap": "name: !!omap x\n",
    "python": "name: !!python/object/apply:os.system [id]\n",
    "merge": "<<: [1, 2]\n",
    "merge deep": "<<: *x\n",
    "long number": "name: " + "9" * 10_000 + "\n",
    "sexagesimal": "name: " + "1:" * 30_000 + "1\n",
    "long text": "name: " + "x" * 100_000 + "\n",
    "nul": "name: a\x00\n",
    "list as key": "? [a]\n: b\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "surrogate": 'name: "\\ud800"\n',
    "tabs": "\t\t\n",
    "directive": "%YAML 9.9\n---\na: 1\n",
    "value tag": "name: !!value =\n",
    "null tag": "name: !!null x\nflag: {score: 0.5}\n",
    "map tag": "name: !!map x\n",
    "str tag on a list": "name: !!str [a]\n",
}


def _unfit(bundles: Bundles, folder: Path) -> Refused | Bundle:
    raw = (folder / "manifest.json").read_bytes()
    return _result(bundles, f"cards-{hashlib.sha256(raw).hexdigest()[:12]}", str(folder))


@pytest.mark.parametrize("file", ["policy.yaml", "feature_set.yaml"])
@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_a_refusal(kind: str, file: str, folder: Path, tmp_path: Path, model: bytes) -> None:
    """A policy or feature set that is hostile YAML refuses the bundle by its own errors, in bounded time."""
    _write(tmp_path / "initial", model, created_at="initial")
    bundles = Bundles(Bundle.load(tmp_path / "initial"), BundleSettings(locations=[str(folder.parent)]))
    _replace(folder, file, HOSTILE_YAML[kind].encode("utf-8", "surrogatepass"))
    started_s = time.process_time()
    result = _unfit(bundles, folder)
    assert isinstance(result, Refused)
    assert " made " not in result.detail, result  # an error of ours, not the last resort
    assert time.process_time() - started_s < 5


_yaml = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def _mutated(text: bytes, change: tuple[int, int, bytes]) -> bytes:
    at, cut, put = change
    at %= len(text) + 1
    return text[:at] + put + text[at + cut :]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["policy.yaml", "feature_set.yaml", "manifest.json", "model.ubj"]),
    document=_yaml,
    change=st.tuples(st.integers(0, 10_000), st.integers(0, 12), st.binary(max_size=12)),
    structured=st.booleans(),
)
def test_no_bundle_makes_more_than_a_refusal(
    file: str, document: Any, change: tuple[int, int, bytes], structured: bool, folder: Path, model: bytes
) -> None:
    """Whatever stands in a bundle's file: it is loaded, or refused by an error of ours."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        data = json.dumps(document).encode() if structured else _mutated(before[file], change)
        if file == "manifest.json":
            (folder / file).write_bytes(data)
        else:
            _replace(folder, file, data)
        with suppress(BundleError):
            load_bundle(folder)
    finally:
        for name, data in before.items():
            (folder / name).write_bytes(data)


def test_a_bundle_is_proved_where_the_activation_says_it_lies(folder: Path, tmp_path: Path) -> None:
    """The bundle that serves is not taken from a place that does not hold it: a new owner could not load it."""
    bundle = Bundle.load(folder)
    (folder.parent / "empty").mkdir()
    bundles = Bundles(bundle, BundleSettings(locations=[str(folder.parent)]))
    assert isinstance(_result(bundles, bundle.id, str(folder.parent / "empty")), Refused)
    assert isinstance(_result(bundles, bundle.id, str(folder)), Bundle)
    assert isinstance(bundles.begin(bundle.id, str(folder)), Bundle)
    assert isinstance(_result(bundles, bundle.id, str(folder.parent / "empty")), Refused)


def test_a_policy_within_the_limits_still_loads(folder: Path) -> None:
    """An anchor used again is no attack: what stays within the limits is read as before."""
    lists = "lists:\n" + "".join(
        f"  - {{name: {name}, field: merchant_id, then: flag, reason: ON_LIST, values: {values}}}\n"
        for name, values in (("a", "&v [x, y]"), ("b", "*v"))
    )
    _replace(folder, "policy.yaml", (POLICY + lists).encode())
    assert [item.values for item in load_bundle(folder).policy.lists] == [["x", "y"]] * 2
