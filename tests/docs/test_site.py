"""The documentation's site: it builds without a warning, in two languages, and loads nothing from another host."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADING_ATTRIBUTES = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


def build(*flags):
    command = ["bash", ROOT / "scripts/build_docs.sh", *flags]
    return subprocess.run(command, text=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build("--site-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """Collect the addresses that a browser loads with a page. A canonical link or a link to follow is not loaded."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        address = values.get(LOADING_ATTRIBUTES.get(tag, ""))
        if address and values.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.addresses.append(address)


def test_nothing_is_loaded_from_another_host(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 8 and styles
    loaded = {address for page in pages for address in Loaded(page).addresses}
    loaded |= {match for style in styles for match in re.findall(r"url\(([^)]+)\)", style.read_text())}
    assert {address for address in loaded if re.match(r"['\"]?(\w+:)?//", address)} == set()
    assert not any("@import" in style.read_text() for style in styles)


@pytest.mark.parametrize(
    ("page", "language", "start"), [("index", "en", "PanGu-α on"), ("zh/index", "zh", "基于 MindSpore")]
)
def test_both_languages_have_a_start_page(page, language, start, site):
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    assert f'<html lang="{language}"' in text and start in text
    assert 'hreflang="en"' in text and 'hreflang="zh"' in text


def test_links_of_the_readme_lead_to_pages(site):
    assert 'href="serving.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="zh/index.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_chinese_words_can_be_searched(site):
    """The index has U+200B between the words that jieba finds."""
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    assert "zh" in index["config"]["lang"]
    chinese = " ".join(entry["text"] for entry in index["docs"] if entry["location"].startswith("zh/"))
    assert "\u200b训练\u200b" in chinese


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](../src/nowhere.py)", "../src/nowhere.py"),
        ("[x](serving.md#nowhere)", "#nowhere"),
    ],
)
def test_a_broken_link_is_an_error(text, told, site, tmp_path):
    for name in ("mkdocs.yml", "docs", "README.md", "README_CN.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/web.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")
    done = build("--config-file", tmp_path / "mkdocs.yml")
    assert done.returncode == 1
    assert told in done.stderr
