"""What is wrong with the built site: dead links, loads from elsewhere, headings out of order, images without words."""

import re
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

from helpers import COURSE_ROOT
from helpers.course import address

# What a browser fetches by itself while it shows a page: tag, attribute.
_LOADS = {
    ("script", "src"), ("link", "href"), ("img", "src"), ("img", "srcset"), ("iframe", "src"), ("source", "src"),
    ("source", "srcset"), ("video", "src"), ("audio", "src"), ("embed", "src"), ("object", "data"), ("input", "src"),
}  # fmt: skip
_NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "author", "license", "help", "up", "top"}  # <link rel>
_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
# In scripts and styles: an address that is fetched, not one that stands in a comment or names a licence or a namespace.
_FETCHED = re.compile(
    r"""(?:url\(\s*|@import\s+(?:url\(\s*)?|\bfetch\(\s*|importScripts\(\s*|\bimport\(\s*|sendBeacon\(\s*|\.src\s*=\s*|\.open\([^,)]*,\s*)['"`]?((?:https?:)?//[\w.-]+)"""
)


class Page(HTMLParser):
    """A page's ids, links, loads, headings and images."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.headings: list[int] = []
        self.without_words: list[str] = []
        self.language = self.title = ""
        self._raw = ""  # the tag whose text is a script or a style
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "form" and "action" in found:
            self.links.append(found["action"])
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" and not found.get("alt", "").strip():
            self.without_words.append(found.get("src", ""))
        if tag == "html":
            self.language = found.get("lang", "")
        fetched = tag != "link" or not set(found.get("rel", "").split()) <= _NOT_FETCHED
        self.loads += [value for name, value in found.items() if (tag, name) in _LOADS and fetched]
        self.loads += _FETCHED.findall(found.get("style", ""))
        self._raw = tag if tag in ("script", "style") else self._raw
        self._in_title = tag == "title" or self._in_title and tag != "body"

    def handle_endtag(self, tag):
        self._raw = "" if tag == self._raw else self._raw
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data):
        if self._raw:
            self.loads += _FETCHED.findall(data)
        if self._in_title:
            self.title += data


def dead_links(pages: dict[str, Page], folder: Path) -> list[str]:
    """Links within the site, and into the release's files, that lead nowhere."""
    repository, tag = address()
    release = f"https://github.com/{repository}/blob/{tag}/"
    faults = []
    for name, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if path.startswith(release):
                if not (COURSE_ROOT / urllib.parse.unquote(path.removeprefix(release))).exists():
                    faults.append(f"{name}: {link} names a file that is not in the repository")
                continue
            if re.match(r"[a-z]+:|//", path):
                continue
            target = name
            if path:
                whole = (folder / name).parent / urllib.parse.unquote(path.partition("?")[0])
                target = whole.resolve().relative_to(folder.resolve()).as_posix() if whole.exists() else ""
            if not target:
                faults.append(f"{name}: {link} leads nowhere")
            elif anchor and target in pages and urllib.parse.unquote(anchor) not in pages[target].ids:
                faults.append(f"{name}: {link} names a place that is not on the page")
    return faults


def foreign_loads(pages: dict[str, Page], folder: Path) -> list[str]:
    """Everything that a browser would fetch from another machine."""
    faults = [f"{name}: loads {load}" for name, page in pages.items() for load in page.loads if _ELSEWHERE.match(load)]
    for file in sorted([*folder.rglob("*.js"), *folder.rglob("*.css"), *folder.rglob("*.svg")]):
        text = file.read_text(encoding="utf-8", errors="replace")
        faults += [f"{file.relative_to(folder)}: loads {load}" for load in _FETCHED.findall(text)]
    return faults


def faults_of_page(name: str, page: Page) -> list[str]:
    """What makes a page hard to read for who hears it."""
    faults = [f"{name}: the image {src} has no alternative text" for src in page.without_words]
    faults += [] if page.headings.count(1) == 1 else [f"{name}: {page.headings.count(1)} headings of the first level"]
    steps = zip(page.headings, page.headings[1:], strict=False)
    faults += [f"{name}: a heading of level {b} follows one of level {a}" for a, b in steps if b > a + 1]
    faults += [
        f"{name}: two elements have the id {one}" for one in sorted({i for i in page.ids if page.ids.count(i) > 1})
    ]
    faults += [] if page.language and page.title.strip() else [f"{name}: no language, or no title"]
    return faults


def faults(folder: Path) -> list[str]:
    """All that is wrong with the site in a folder."""
    pages = {
        file.relative_to(folder).as_posix(): Page(file.read_text(encoding="utf-8"))
        for file in sorted(folder.rglob("*.html"))
        if "_static" not in file.relative_to(folder).parts
    }
    found = dead_links(pages, folder) + foreign_loads(pages, folder)
    return found + [fault for name, page in pages.items() for fault in faults_of_page(name, page)]
