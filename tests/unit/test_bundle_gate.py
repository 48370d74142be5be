"""What makes a bundle trusted: golden rows, signatures, challengers, the gate and its exit code."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scorer.bundle import (
    Bundle,
    BundleContentError,
    BundleError,
    BundleGateError,
    BundleManifestError,
    BundleMismatchError,
    BundleSignatureError,
    Calibration,
    NewChallenger,
    TrainingWindow,
    write_bundle,
)
from scorer.bundle.gate import verify
from scorer.bundle.signature import public_name, sign
from scorer.cli import main
from scorer.errors import UsageError

xgb = pytest.importorskip("xgboost")

FEATURE_SET = """
name: cards
currency: EUR
entities: {customer: [customer_id]}
features:
  - {name: amount, payment: amount}
  - {name: hour, payment: hour_of_day}
  - {name: customer_count_1h, entity: customer, aggregate: count, window: 1h}
"""
POLICY = "name: cards\nflag: {score: 0.5}\n"


def _booster(seed: int = 0, rounds: int = 5) -> Any:
    rows = np.random.default_rng(seed).normal(size=(400, 3)).astype(np.float32)
    target = (rows[:, 0] + rows[:, 1] > 0.7).astype(np.float32)
    parameters = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    return xgb.train(parameters, xgb.DMatrix(rows, target, nthread=1), rounds)


def _golden(booster: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(9).normal(size=(50, 3)).astype(np.float32)
    rows[::7, 1] = np.nan
    return rows, booster.inplace_predict(rows, predict_type="margin").astype(np.float32)


def _write(output: Path, **changed: Any) -> Bundle:
    booster = _booster()
    arguments: dict[str, Any] = {
        "name": "cards",
        "created_at": "2025-01-01T00:00:00Z",
        "model": bytes(booster.save_raw("ubj")),
        "feature_set_yaml": FEATURE_SET,
        "policy_yaml": POLICY,
        "threshold_score": 0.5,
        "golden": _golden(booster),
    }
    return write_bundle(output, **(arguments | changed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def _manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _replace(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    _manifest(folder, files=files | {name: hashlib.sha256(data).hexdigest()})


def test_another_model_under_the_same_golden_rows_is_refused(folder: Path) -> None:
    """A model whose margins are not those stored with the bundle never loads, even with every hash made right."""
    _replace(folder, "model.ubj", bytes(_booster(seed=1).save_raw("ubj")))
    _manifest(folder, base_margin=float(Bundle.load(_twin(folder)).model.base_margin))
    with pytest.raises(BundleGateError, match=r"differs from its source on \d+ of 50 golden rows, first on row"):
        Bundle.load(folder)


def _twin(folder: Path) -> Path:
    twin = folder.parent / "twin"
    booster = _booster(seed=1)
    _write(twin, model=bytes(booster.save_raw("ubj")), golden=_golden(booster))
    return twin


def test_one_bit_of_a_golden_margin_is_seen(folder: Path) -> None:
    """The last bit of one stored margin is enough to refuse the bundle."""
    data = bytearray((folder / "golden.f32").read_bytes())
    data[12] ^= 1  # the lowest byte of the first row's margin
    _replace(folder, "golden.f32", bytes(data))
    with pytest.raises(BundleGateError, match="first on row 0"):
        Bundle.load(folder)


@pytest.mark.parametrize("change", [lambda d: d[:-4], lambda d: d + d[:16], lambda d: b""])
def test_golden_rows_of_another_size_are_refused(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """A cut or lengthened golden file is refused, naming both sizes."""
    _replace(folder, "golden.f32", change((folder / "golden.f32").read_bytes()))
    with pytest.raises(BundleContentError, match=r"golden.f32 has \d+ bytes, wanted 50 rows x 4"):
        Bundle.load(folder)


def test_a_signed_bundle_loads_for_those_who_trust_the_key(folder: Path, key: Ed25519PrivateKey) -> None:
    """The trusted key opens it, its id stays, and a second signer is added beside the first."""
    before = Bundle.load(folder)
    assert before.signed_by == ()
    name = sign(folder, key, (folder / "manifest.json").read_bytes())
    assert name == public_name(key.public_key())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for trusted in (name, pem.decode()):
        loaded = Bundle.load(folder, trusted_keys=[trusted])
        assert loaded.id == before.id
        assert loaded.signed_by == (name,)
    other = Ed25519PrivateKey.generate()
    assert Bundle.load(folder).signed_by == (name,)
    sign(folder, other, (folder / "manifest.json").read_bytes())
    sign(folder, key, (folder / "manifest.json").read_bytes())  # again: replaced, not doubled
    assert set(Bundle.load(folder, trusted_keys=[public_name(other.public_key())]).signed_by) == {
        name, public_name(other.public_key())
    }  # fmt: skip


def _other_manifest(folder: Path, key: Ed25519PrivateKey) -> None:
    sign(folder, key, (folder / "manifest.json").read_bytes())
    _manifest(folder, created_at="2026-01-01T00:00:00Z")


def _raw_signature(folder: Path, key: Ed25519PrivateKey) -> None:
    """Signed without the prefix that says what is signed."""
    signature = base64.b64encode(key.sign((folder / "manifest.json").read_bytes())).decode()
    document = {"signatures": [{"public_key": public_name(key.public_key()), "signature": signature}]}
    (folder / "manifest.sig").write_text(json.dumps(document))


def _flipped(folder: Path, key: Ed25519PrivateKey) -> None:
    sign(folder, key, (folder / "manifest.json").read_bytes())
    document = json.loads((folder / "manifest.sig").read_text())
    raw = bytearray(base64.b64decode(document["signatures"][0]["signature"]))
    raw[5] ^= 1
    document["signatures"][0]["signature"] = base64.b64encode(bytes(raw)).decode()
    (folder / "manifest.sig").write_text(json.dumps(document))


UNTRUSTED: dict[str, tuple[Callable[[Path, Ed25519PrivateKey], Any], str]] = {
    "unsigned": (lambda f, k: None, "is not signed, and 1 trusted keys are set"),
    "signed by another": (
        lambda f, k: sign(f, Ed25519PrivateKey.generate(), (f / "manifest.json").read_bytes()),
        "none of the 1 trusted keys",
    ),
    "manifest changed": (_other_manifest, "does not fit manifest.json"),
    "signature of something else": (_raw_signature, "does not fit manifest.json"),
    "signature flipped": (_flipped, "does not fit manifest.json"),
    "signature is no JSON": (lambda f, k: (f / "manifest.sig").write_text("{"), "manifest.sig cannot be read"),
    "no signature inside": (lambda f, k: (f / "manifest.sig").write_text('{"signatures": []}'), "cannot be read"),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_an_untrusted_bundle_is_refused(folder: Path, key: Ed25519PrivateKey, case: str) -> None:
    """Without a fitting signature of a trusted key nothing of the bundle is used."""
    change, message = UNTRUSTED[case]
    change(folder, key)
    with pytest.raises(BundleSignatureError, match=message):
        Bundle.load(folder, trusted_keys=[public_name(key.public_key())])


def test_a_signature_that_does_not_fit_is_refused_even_where_none_is_asked_for(
    folder: Path, key: Ed25519PrivateKey
) -> None:
    """A broken signature is refused as tampering, with and without trusted keys."""
    _flipped(folder, key)
    with pytest.raises(BundleSignatureError, match="does not fit"):
        Bundle.load(folder)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:abc", "-----BEGIN PUBLIC KEY-----\nx\n-----END"])
def test_a_trusted_key_that_is_none_is_a_usage_error(folder: Path, text: str) -> None:
    """A setting that holds no key is refused, rather than read as no trusted key."""
    with pytest.raises(UsageError, match="a trusted key is neither"):
        Bundle.load(folder, trusted_keys=[text])


def test_challengers_score_beside_the_model(tmp_path: Path) -> None:
    """A bundle carries challengers in the order of their ids; their margins are their own models', the decision's are
    unchanged.
    """
    rows = _golden(_booster())[0]
    boosters = {"b-deeper": _booster(3, 9), "a-other": _booster(4)}
    bundle = _write(
        tmp_path / "bundle",
        challengers=[NewChallenger(name, bytes(booster.save_raw("ubj"))) for name, booster in boosters.items()],
    )
    assert [item.id for item in bundle.challengers] == ["a-other", "b-deeper"]
    shadow = bundle.shadow_margins(rows)
    assert shadow.shape == (50, 2)
    assert shadow.dtype == np.float32
    for column, item in enumerate(bundle.challengers):
        wanted = boosters[item.id].inplace_predict(rows, predict_type="margin")
        assert (shadow[:, column] == wanted).all()
    assert (bundle.model.margins(rows) == _golden(_booster())[1]).all()
    assert Bundle.load(tmp_path / "bundle").shadow_margins(rows[:0]).shape == (0, 2)


def test_the_command_carries_challengers(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """`bundle challenge` keeps the champion's decisions and names each challenger by its bundle; other features are
    refused.
    """
    other = _booster(7, 9)
    rival = _write(tmp_path / "rival", model=bytes(other.save_raw("ubj")), golden=_golden(other))
    code, out, err = command("challenge", folder, "--with", tmp_path / "rival", "--output", tmp_path / "both", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["challengers"] == [rival.id]
    before, both = Bundle.load(folder), Bundle.load(tmp_path / "both")
    rows = _golden(other)[0]
    assert (both.model.margins(rows) == before.model.margins(rows)).all()
    assert (both.shadow_margins(rows)[:, 0] == rival.model.margins(rows)).all()
    assert both.threshold_margin == before.threshold_margin
    assert verify(tmp_path / "both").passed
    _write(tmp_path / "wide", feature_set_yaml=FEATURE_SET.replace("window: 1h", "window: 2h"))
    code, _, err = command("challenge", folder, "--with", tmp_path / "wide", "--output", tmp_path / "none")
    assert code == 3
    assert "a challenger sees the champion's features" in err
    assert not (tmp_path / "none").exists()


def test_a_bundle_without_challengers_has_no_shadow(folder: Path) -> None:
    """No challenger gives no column."""
    assert Bundle.load(folder).shadow_margins(np.zeros((4, 3), np.float32)).shape == (4, 0)


CHALLENGED: dict[str, tuple[Callable[[Path], Any], type[BundleError], str]] = {
    "not listed": (lambda f: _manifest(f, challengers=[]), BundleManifestError, "challengers are"),
    "listed twice": (
        lambda f: _manifest(f, challengers=[{"id": "new", "base_margin": 0.0}] * 2), BundleManifestError, "each once",
    ),
    "id is a path": (
        lambda f: _manifest(f, challengers=[{"id": "../new", "base_margin": 0.0}]), BundleManifestError, "challengers",
    ),
    "is a pickle": (
        lambda f: _replace(f, "challenger-new.ubj", b"\x80\x04\x95boom."), BundleContentError, "challenger-new.ubj",
    ),
    "base margin moved": (
        lambda f: _manifest(f, challengers=[{"id": "new", "base_margin": 9.0}]), BundleContentError, "base margin 9.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHALLENGED)
def test_a_challenger_is_checked_like_the_model(tmp_path: Path, case: str) -> None:
    """What is wrong with a challenger refuses the bundle: a shadow model runs in the same process."""
    _write(tmp_path / "bundle", challengers=[NewChallenger("new", bytes(_booster(3).save_raw("ubj")))])
    change, error, message = CHALLENGED[case]
    change(tmp_path / "bundle")
    with pytest.raises(error, match=message):
        Bundle.load(tmp_path / "bundle")


def test_scores_are_calibrated_and_thresholds_follow(tmp_path: Path) -> None:
    """The score is the calibrated one, and comparing margins decides as comparing scores does."""
    curve = Calibration(kind="platt", slope=0.8, intercept=-1.5)
    bundle = _write(tmp_path / "b", calibration=curve)
    rows = np.random.default_rng(1).normal(size=(2_000, 3)).astype(np.float32)
    margins = bundle.model.margins(rows)
    scores = bundle.scores(margins)
    assert np.allclose(scores, 1 / (1 + np.exp(-(0.8 * margins.astype(float) - 1.5))), atol=1e-6)
    assert ((scores >= 0.5) == (margins >= bundle.threshold_margin)).all()
    assert float(bundle.threshold_margin) == pytest.approx(1.5 / 0.8, rel=1e-5)


def test_a_threshold_that_no_score_reaches_is_said(tmp_path: Path) -> None:
    """An isotonic curve that ends at .4 cannot meet a threshold of .5; no bundle is made."""
    curve = Calibration(kind="isotonic", margins=(-1.0, 1.0), scores=(0.0, 0.4))
    with pytest.raises(BundleManifestError, match=r"no margin has a score of 0.5: the calibrated scores end at 0.4"):
        _write(tmp_path / "b", calibration=curve)


def test_a_moved_calibration_is_seen(folder: Path) -> None:
    """Another calibration moves the threshold on margins, and the manifest then contradicts itself."""
    _manifest(folder, calibration={"kind": "platt", "slope": 2.0, "intercept": 1.0})
    with pytest.raises(BundleMismatchError, match="threshold margin"):
        Bundle.load(folder)


def test_the_gate_passes_a_sound_bundle(folder: Path) -> None:
    """Every check of the gate is named, and a sound bundle passes them all."""
    verdict = verify(folder)
    assert verdict.passed, verdict.checks
    assert [check.name for check in verdict.checks] == [
        "files",
        "signature",
        "feature set",
        "golden rows",
        "vector and plain",
        "treelite",
        "scores",
        "calibration",
        "explanations",
    ]


@pytest.mark.parametrize("golden", [None, (np.zeros((0, 3), np.float32), np.zeros(0, np.float32))])
def test_no_bundle_is_written_without_golden_rows(tmp_path: Path, golden: Any) -> None:
    """What the gate would refuse later is refused when it is written, and nothing is left behind."""
    with pytest.raises(BundleGateError, match="a bundle needs golden rows"):
        _write(tmp_path / "b", golden=golden)
    assert not list(tmp_path.iterdir())


def test_the_gate_fails_without_golden_rows(folder: Path) -> None:
    """A bundle that carries no evidence of its source's margins does not pass."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    _manifest(folder, golden_rows=0, files={name: digest for name, digest in files.items() if name != "golden.f32"})
    (folder / "golden.f32").unlink()
    verdict = verify(folder)
    assert not verdict.passed
    assert [check.name for check in verdict.checks if not check.passed] == ["golden rows"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `fraud-scorer bundle …` in this process; gives exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fraud-scorer", "bundle", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        done = capsys.readouterr()
        return int(exit_.value.code or 0), done.out, done.err

    return run


def test_the_commands_verify_and_sign(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """`bundle sign --new-key`, then `bundle verify` with that key: exit 0; after tampering: exit 3 and one line why."""
    key = tmp_path / "signing.pem"
    code, out, err = command("sign", folder, "--key", key, "--new-key", "--json")
    assert code == 0, err
    name = json.loads(out.splitlines()[-1])["signed_by"]
    assert key.stat().st_mode & 0o077 == 0
    code, out, err = command("verify", folder, "--trusted-key", name, "--json")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["passed"]
    assert len(report["checks"]) == 9
    assert name in command("show", folder)[1].replace("\n", "")
    (folder / "policy.yaml").write_text(POLICY + " ")
    code, out, err = command("verify", folder, "--trusted-key", name)
    assert code == 3
    assert "policy.yaml" in err
    assert len(err.strip().splitlines()) == 1


def test_an_unfit_bundle_is_not_sent(folder: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    """`bundle activate` runs the gate before it looks for a broker: an unfit bundle ends with exit 3."""
    (folder / "golden.f32").write_bytes(b"")
    code, _, err = command("activate", folder)
    assert code == 3
    assert "golden.f32" in err


MAPPING = """
payment_id: TX
event_time: AT
amount: AMOUNT
currency: {constant: EUR}
customer_id: CUSTOMER
label: FRAUD
"""


@pytest.fixture
def held_out(tmp_path: Path) -> tuple[Path, Path]:
    """A CSV of 900 payments with labels, and its mapping."""
    rng = np.random.default_rng(0)
    lines = ["TX,AT,AMOUNT,CUSTOMER,FRAUD"]
    for number in range(900):
        fraud = int(rng.random() < 0.1)
        at = f"2025-01-{1 + number // 60:02d}T{number // 4 % 24:02d}:{number % 60:02d}:00Z"
        lines.append(f"t{number},{at},{rng.exponential(20) * (1 + 5 * fraud):.2f},c{number % 40},{fraud}")
    (tmp_path / "later.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    return tmp_path / "later.csv", tmp_path / "mapping.yaml"


def test_the_commands_compile_and_export(
    folder: Path, tmp_path: Path, held_out: tuple[Path, Path], command: Callable[..., tuple[int, str, str]]
) -> None:
    """Levers measure on payments from a file, write a bundle that passes the gate, and exports are written once."""
    file, mapping = held_out
    given = (folder, "--input", file, "--mapping", mapping, "--json")
    for lever, output in (("--quantise-leaves", "q"), ("--prune", "p"), ("--distil", "s")):
        code, out, err = command("compile", *given, lever, "--output", tmp_path / output)
        assert code == 0, err
        report = json.loads(out.splitlines()[-1])
        assert {"file_bytes", "batch_us", "single_us", "average_precision", "auc"} <= report["before"].keys()
        assert report["before"].keys() == report["after"].keys()
        assert command("verify", tmp_path / output)[0] == 0
    code, out, err = command("compile", *given, "--early-exit")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["decisions_changed"] == 0
    assert command("compile", *given, "--prune", "--distil", "--output", tmp_path / "x")[0] == 2
    assert command("compile", *given, "--prune")[0] == 2
    for kind, name in (("c", "m.c"), ("python", "m.py")):
        assert command("export", folder, "--format", kind, "--output", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_text().count("margin") > 2
        assert command("export", folder, "--format", kind, "--output", tmp_path / name)[0] == 2  # never overwritten


@pytest.mark.parametrize("sound", [True, False])
def test_text_in_brackets_is_shown_and_the_exit_code_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """A folder or file named like rich's markup is shown by its name; a bundle that fails still ends in 3."""
    odd = tmp_path / "[red]"
    folder.rename(odd)
    if not sound:
        (odd / "[blue]\x1b[2J").write_text("")
    monkeypatch.setattr(sys, "argv", ["fraud-scorer", "bundle", "show" if sound else "verify", str(odd)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == (0 if sound else 3)
    printed = capsys.readouterr()
    assert ("[red]" if sound else "[blue]") in printed.out.replace("\n", "")
    assert "\x1b" not in printed.out + printed.err


def _with_challenger(folder: Path, booster: Any, golden: tuple[np.ndarray, np.ndarray] | None) -> Path:
    _write(folder, challengers=[NewChallenger("new", bytes(booster.save_raw("ubj")), golden=golden)])
    return folder


def test_the_gate_checks_challengers_as_the_champion(tmp_path: Path) -> None:
    """Golden rows, parity, scores and calibration are looked at for each challenger, and named by it."""
    booster = _booster(3)
    verdict = verify(_with_challenger(tmp_path / "b", booster, _golden(booster)))
    assert verdict.passed
    names = [check.name for check in verdict.checks if check.name.startswith("challenger new: ")]
    assert [name.removeprefix("challenger new: ") for name in names] == [
        "golden rows", "vector and plain", "treelite", "scores", "calibration",
    ]  # fmt: skip
    bare = verify(_with_challenger(tmp_path / "c", booster, None))
    assert [check.name for check in bare.checks if not check.passed] == ["challenger new: golden rows"]


def test_a_challenger_that_is_not_its_source_is_refused(tmp_path: Path) -> None:
    """A challenger whose margins are not those stored with it never loads."""
    booster = _booster(3)
    rows, margins = _golden(booster)
    margins[7] = np.nextafter(margins[7], np.float32(9))
    with pytest.raises(BundleGateError, match=r"1 of 50 golden rows, first on row 7 of golden-new\.f32"):
        _with_challenger(tmp_path / "b", booster, (rows, margins))


def test_the_name_of_a_challenger_that_is_too_long_is_said(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """A bundle's id longer than a challenger's may be ends with its length and the way out."""
    _write(tmp_path / "rival", name="a" * 60)
    code, _, err = command("challenge", folder, "--with", tmp_path / "rival", "--output", tmp_path / "both")
    assert code == 2
    assert "73 characters; a challenger may have 62" in err


@pytest.mark.parametrize("field", ["train_from_ms", "validation_until_ms", "train_rows", "label_gap_ms", "seed"])
def test_numbers_beyond_any_date_or_count_are_refused(folder: Path, field: str) -> None:
    """A manifest whose training window cannot be written as dates and counts ends in an error that names the field."""
    window = {name: 1 for name, info in TrainingWindow.model_fields.items() if info.is_required()}
    _manifest(folder, training=window)
    Bundle.load(folder)
    _manifest(folder, training=window | {field: 10**30})
    with pytest.raises(BundleManifestError, match=f"training.{field}"):
        Bundle.load(folder)
