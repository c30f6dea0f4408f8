"""Read a report's HTML page as a browser would: which tags and text it has, and that it loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"link", "iframe", "object", "embed", "base", "form", "video", "audio", "source"}


class Page(HTMLParser):
    """The page's tags with their attributes, its text, and its scripts by their type."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = dict(attributes).get("type") or tag

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = ""
        elif tag in ("td", "th", "dd", "button"):
            self.text += " "

    def handle_data(self, data):
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data

    @property
    def data(self):
        """The JSON that the page carries for downloads."""
        return json.loads(self.scripts["application/json"])


def read_page(path: Path) -> Page:
    """Read a page, and check that it loads nothing, from the network or from other files."""
    page = Page(path.read_text(encoding="utf-8"))
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; ")
    assert "http" not in policy[0]
    assert not LOADING & {tag for tag, _ in page.tags}
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset", "action") if key in a]
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"url\(|@import", page.scripts["style"])
    assert not re.search(r"fetch\(|XMLHttp|WebSocket|import\b|eval\(|innerHTML", page.scripts["script"])
    assert not any(key.startswith("on") for _, a in page.tags for key in a)
    return page
