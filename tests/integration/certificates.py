"""A certificate authority for one test: PEM files for a broker and its clients."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Issues certificates for 127.0.0.1 with openssl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        self._run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(self._key), "-out",
                  str(self.certificate), "-days", "2", "-subj", "/CN=test authority")  # fmt: skip

    def issue(self, name: str, *, password: str | None = None) -> tuple[Path, Path]:
        """(certificate, key) for CN=name; the key is encrypted when a password is given. Both are also in one .pem."""
        key, request, certificate = (self._folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
        extensions = self._folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        self._run("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(key))
        self._run("req", "-new", "-key", str(key), "-subj", f"/CN={name}", "-out", str(request))
        self._run("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key),
                  "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate))  # fmt: skip
        (self._folder / f"{name}.pem").write_text(key.read_text() + certificate.read_text())
        if password is not None:
            plain, encrypted = key, self._folder / f"{name}.encrypted.key"
            self._run("pkcs8", "-topk8", "-in", str(plain), "-passout", f"pass:{password}", "-out", str(encrypted))
            key = encrypted
        return certificate, key

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
