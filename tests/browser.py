"""Pages as a browser has them: Debian's Chromium without a window, on a file and without the network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=5000", "--window-size=1280,900",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
# Before the page's own script: whatever goes wrong is kept.
_WATCH = """
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message ?? event.target)), true);
addEventListener("securitypolicyviolation", (event) => wrong.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
# After it, once charts are drawn.
_ANSWER = """
setTimeout(() => {
  let answer = null;
  try { answer = (() => { %s })(); } catch (error) { wrong.push(String(error)); }
  const text = document.createElement("pre");
  text.id = "answer";
  text.textContent = JSON.stringify({ answer, wrong });
  document.body.append(text);
}, 500);
"""


def asked(page: Path, script: str, *flags: str) -> Any:
    """What the body `script` of a function returns within the page, after the page's own script has run. Fails on any
    error of the page, and on whatever its content security policy has blocked. Skipped only without Chromium, which
    `.ci/run` installs."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    text = page.read_text(encoding="utf-8")
    after = _ANSWER % script
    digests = (hashlib.sha256(part.encode()).digest() for part in (_WATCH, after))
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # The page's policy lets two scripts more run, and is unchanged otherwise.
    watched, found = re.subn("script-src ", f"script-src {allowed} ", text, count=1)
    assert found == 1
    watched = watched.replace("<title>", f"<script>{_WATCH}</script><title>", 1)
    watched = watched.replace("</body>", f"<script>{after}</script></body>", 1)
    copy = page.with_name(f"watched_{page.name}")
    copy.write_text(watched, encoding="utf-8")
    done = subprocess.run(
        [program, *FLAGS, *flags, f"--user-data-dir={page.parent}/profile_{page.stem}", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    (answer,) = re.findall(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    answered = json.loads(html.unescape(answer))
    assert not answered["wrong"], answered["wrong"]
    return answered["answer"]
