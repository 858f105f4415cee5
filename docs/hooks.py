"""Hooks of the documentation's site (mkdocs.yml): pages from the top folder, and the interface's language.

A Git host shows README.md and others from the top folder. The site needs them among docs/, with links that fit there.
"""

import logging
import posixpath
import re
from pathlib import Path

import jieba
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

jieba.setLogLevel(logging.WARNING)  # the search plugin uses it
ROOT = Path(__file__).parents[1]
# Files of the top folder that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "README_CN.md": "zh/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
TEXT_OF_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder."""
    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links between the repository's files links between the site's pages.

    A link to a file that is not on the site, such as a source file, becomes plain text. A link to a file that does not
    exist stays as it is, and the build fails.
    """
    page_uri = page.file.src_uri
    source = {page: source for source, page in PAGES.items()}.get(page_uri, f"docs/{page_uri}")

    def on_site(target: str) -> str | None:
        """Return the site's path of a link's target, or None if it is not on the site."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = PAGES.get(path) or path.removeprefix("docs/")
        return posixpath.relpath(uri, posixpath.dirname(page_uri) or ".") if files.get_file_from_path(uri) else None

    def exists(target: str) -> bool:
        return (ROOT / posixpath.dirname(source) / target).exists()

    markdown = TEXT_OF_LINK.sub(lambda link: link[0] if on_site(link[2]) or not exists(link[2]) else link[1], markdown)
    return LINK.sub(lambda link: (on_site(link[1]) or link[1]) + (link[2] or ""), markdown)


def on_page_context(context: dict, page: Page, config: MkDocsConfig, nav: object) -> None:
    """Show the interface in the page's language."""
    config.theme["language"] = "zh" if page.file.src_uri.startswith("zh/") else "en"
