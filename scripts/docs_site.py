"""What mkdocs.yml adds to docs/: the pages at the repository's root, and every repository file that a page links to.

Pages link to files as GitHub wants it (`../trainer/loop.py`). On the site such a file is a page of its own below
repository/, so that the link works there too.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# A link's target; code is matched first, so that nothing in it is taken for a link.
LINK = re.compile(r"```.*?^\s*```|`[^`\n]+`|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash"}
HIDDEN = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name, source in ROOT_PAGES.items():
        files.append(File.generated(config, source, content=(ROOT / name).read_text()))
    for path in sorted(set(_linked(files))):
        files.append(File.generated(config, _page_of(path), content=_page(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = page.file.src_uri
    return markdown if source.startswith("repository/") else _with_links(markdown, source)


def _with_links(markdown: str, source: str) -> str:
    """The page with links that lead somewhere on the site."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or ":" in target or target.startswith("#"):
            return match[0]
        path, _, anchor = target.partition("#")
        there = _on_the_site(_in_the_repository(path, source))
        return posixpath.relpath(there, posixpath.dirname(source) or ".") + (f"#{anchor}" if anchor else "")

    return LINK.sub(replaced, markdown)


def _linked(files: Files) -> Iterator[str]:
    """Files and folders outside of docs/ that pages link to, and what these folders hold."""
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            target = match["target"]
            if target is None or ":" in target or target.startswith("#"):
                continue
            path = _in_the_repository(target.partition("#")[0], file.src_uri)
            if path in ROOT_PAGES or path == "docs" or path.startswith("docs/"):
                continue
            if not (ROOT / path).exists():
                continue  # mkdocs says that the link leads nowhere
            yield path
            if (ROOT / path).is_dir():
                yield from (str(child.relative_to(ROOT)) for child in (ROOT / path).iterdir() if child.is_file())


def _in_the_repository(target: str, source: str) -> str:
    """What a page's link means, as a path from the repository's root."""
    folder = "" if source in ROOT_PAGES.values() else posixpath.join("docs", posixpath.dirname(source))
    return posixpath.normpath(posixpath.join(folder, target))


def _on_the_site(path: str) -> str:
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        return f"{inside}/README.md" if (ROOT / path).is_dir() else inside
    return _page_of(path)


def _page_of(path: str) -> str:
    return f"repository/{path}.md"


def _page(path: str) -> str:
    there = ROOT / path
    if there.is_dir():
        children = sorted(child.name for child in there.iterdir() if child.is_file())
        folder = posixpath.basename(path)
        return f"{HIDDEN}# {path}\n\n" + "\n".join(f"* [{name}]({folder}/{name}.md)" for name in children) + "\n"
    fence = "`" * 8
    return f"{HIDDEN}# {path}\n\n{fence} {LANGUAGES.get(there.suffix, 'text')}\n{there.read_text()}\n{fence}\n"
