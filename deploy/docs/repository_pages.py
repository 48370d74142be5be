"""Shows documents that stand elsewhere in the repository as pages of the site, so that nothing is written twice.

PAGES has them all. A page takes a section of another document by a line of its own:

    <!-- section: README.md#Bundles -->

Links are written as in the repository, relative to the file that they stand in. A link to a document of PAGES goes to
its page, a link to any other file of the repository to a copy of that file in the site, below `files/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[2]
OWN: Final = "deploy/docs/pages"  # pages that are written for the site alone
RUNBOOKS: Final = sorted(path.stem for path in (ROOT / "deploy/runbooks").glob("*.md"))
# Document in the repository: page of the site.
PAGES: Final = {
    "README.md": "index.md",  # whose sections are included by the pages
    "ARCHITECTURE.md": "inside/architecture.md",
    "CHANGELOG.md": "inside/changes.md",
    "CONTRIBUTING.md": "inside/contributing.md",
    "deploy/CARD_NUMBERS.md": "security/card-numbers.md",
    "deploy/FEATURES.md": "reference/features.md",
    "deploy/KERNEL_CACHE.md": "operations/kernel-cache.md",
    "deploy/LATENCY.md": "operations/latency.md",
    "deploy/METRICS.md": "reference/metrics.md",
    "deploy/SECURITY.md": "security/threats.md",
    "deploy/TRACING.md": "operations/tracing.md",
    "deploy/charts/README.md": "operations/chart.md",
    "deploy/dashboards/README.md": "operations/dashboards.md",
    "deploy/images/README.md": "operations/images.md",
    "deploy/kafka/ACL.md": "security/kafka-rights.md",
    "deploy/examples/own_model/README.md": "examples/own_model.md",
    "deploy/examples/raw_csv/README.md": "examples/raw_csv.md",
    "deploy/runbooks/": "operations/alerts.md",
    **{f"deploy/runbooks/{name}.md": f"runbooks/{name}.md" for name in RUNBOOKS},
}
_ORIGINS: Final = {page: document for document, page in PAGES.items() if document.endswith(".md")}
_SECTION = re.compile(r"^<!-- section: (?P<document>\S+?)#(?P<heading>.+?) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_CODE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """mkdocs' event: every document of PAGES becomes a page, and what pages link to is copied."""
    copied: set[str] = set()
    for page, document in _ORIGINS.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        source = (
            _ORIGINS.get(file.src_uri, f"{OWN}/{file.src_uri}") if file.src_uri != "index.md" else f"{OWN}/index.md"
        )
        for target in _targets(with_sections(file.content_string, source), source):
            if target not in PAGES and not target.startswith(OWN) and (ROOT / target).is_file():
                copied.add(target)
    for target in sorted(copied):
        files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - mkdocs' signature
    """mkdocs' event: sections included, links made those of the site."""
    uri = page.file.src_uri
    source = f"{OWN}/{uri}" if uri == "index.md" else _ORIGINS.get(uri, f"{OWN}/{uri}")
    return linked(with_sections(markdown, source), source, uri)


def with_sections(markdown: str, source: str) -> str:
    """The text with every section that it includes; links in them made relative to `source`, a path in the repository.

    Raises KeyError for a heading that its document does not have.
    """

    def taken(found: re.Match[str]) -> str:
        document = found["document"]
        text = section(document, found["heading"])
        return _links(text, lambda target: _relative(posixpath.join(posixpath.dirname(document), target), source))

    return _SECTION.sub(taken, markdown)


def section(document: str, heading: str) -> str:
    """What stands under a heading of a document, up to the next heading of its level or above. Raises KeyError."""
    text = (ROOT / document).read_text(encoding="utf-8")
    headings = [h for h in re.finditer(r"^(#+) (.+)$", text, re.MULTILINE) if not _in_code(text, h.start())]
    for number, found in enumerate(headings):
        if found[2] == heading:
            after = (h.start() for h in headings[number + 1 :] if len(h[1]) <= len(found[1]))
            return text[found.end() : next(after, len(text))].strip("\n")
    raise KeyError(f"{document} has no heading {heading!r}")


def linked(markdown: str, source: str, page: str) -> str:
    """The text of `source`, a path in the repository, with its links made those of `page`."""

    def site(target: str) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        path += "/" if target.endswith("/") else ""
        if path in PAGES:
            to = PAGES[path]
        elif path.startswith(f"{OWN}/") or not (ROOT / path).is_file():
            return target  # a page of the site, or mkdocs reports it
        else:
            to = f"files/{path}"
        return _relative(to, page)

    return _links(markdown, site)


def _targets(markdown: str, source: str) -> list[str]:
    found: list[str] = []

    def note(target: str) -> str:
        found.append(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        return target

    _links(markdown, note)
    return found


def _links(markdown: str, change: Any) -> str:
    """Every link to a file changed; code and addresses of other servers stay."""
    ends = [(block.start(), block.end()) for block in _CODE.finditer(markdown)]

    def one(found: re.Match[str]) -> str:
        inside = any(start <= found.start() < end for start, end in ends)
        if inside or re.match(r"[a-z]+:", found["target"]):
            return found[0]
        return f"]({change(found['target'])}{found['anchor'] or ''})"

    return _LINK.sub(one, markdown)


def _relative(target: str, source: str) -> str:
    end = "/" if target.endswith("/") else ""
    return posixpath.relpath(posixpath.normpath(target), posixpath.dirname(source) or ".") + end


def _in_code(text: str, place: int) -> bool:
    return any(block.start() <= place < block.end() for block in _CODE.finditer(text))
