"""What the documentation names exists: links, anchors, paths, modules, pages, commands, addresses of the API."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.app import create_app
from service.cli.main import app as mcf
from service.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDERS = ("trainer", "service", "k8s", "charts", "tests", "docs", "examples", "scripts", "requirements")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for found in (ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in FOLDERS))
    for path in found
)
# Pages of the site that are made of files at the repository's root (scripts/docs_site.py).
FROM_THE_ROOT = {"index.md", "contributing.md", "changelog.md"}
# Made by make test, make docs or at run time, and not in the repository.
MADE = re.compile(r"site/|\.mcf/|\.venv/")
PATH = re.compile(
    rf"(?:\.\./)*((?:{'|'.join(FOLDERS)}|\.ci)/[\w./*-]*\w[\w./*-]*|Dockerfile|Makefile|\w+\.(?:toml|yml|md))"
)
CODE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_anchor_leads_somewhere(page: str) -> None:
    wrong = [target for target in LINK.findall(prose(page)) if ":" not in target and not leads(page, target)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_backticks_exists(page: str) -> None:
    named = [match[1] for quoted in re.findall(r"`([^`\n]+)`", prose(page)) if (match := PATH.fullmatch(quoted))]
    near = [ROOT, (ROOT / page).parent]
    assert [path for path in named if not MADE.match(path) and not any(any(at.glob(path)) for at in near)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_run_or_imported_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    names = re.findall(r"python -m ((?:trainer|service|k8s|tests)[\w.]*\w)", text)
    names += re.findall(r"`(trainer(?:\.\w+){2,})`", text) if page != "docs/values.md" else []
    for module, imported in re.findall(r"^from ((?:trainer|service|k8s)[\w.]*) import (\([^)]*\)|.+)$", text, re.M):
        names += [f"{module}.{name}" for name in re.findall(r"\w+", imported)]
    assert [name for name in names if not is_defined(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_mcf_command_and_its_options_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"^(?:\$ )?mcf .+$|(?<=\$\()mcf [^)]+", blocks, re.MULTILINE)
    found += re.findall(r"`(mcf [^`]+)`", prose(page))
    words = [shlex.split(command.removeprefix("$ "), comments=True)[1:] for command in found if "..." not in command]
    assert [asked for asked in words if not is_taken(before_redirection(asked))] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_every_address_of_the_api_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    asked = [(method or "GET", path) for method, path in re.findall(r"`(GET|POST|DELETE)? ?(/v1/[^`? ]+)", text)]
    for line in re.findall(r"^curl .*MCF_URL.*$", text, re.MULTILINE):
        method, path = re.search(r"-X (\w+)", line), re.search(r"MCF_URL(/[^\"?]+)", line)
        assert path, line
        asked.append((method[1] if method else "GET", path[1]))
    assert [each for each in asked if not any(re.fullmatch(known, " ".join(each)) for known in addresses())] == []


def test_the_navigation_has_every_page_once() -> None:
    listed = list(in_navigation(configuration()["nav"]))
    written = {path.removeprefix("docs/") for path in PAGES if path.startswith("docs/")}
    assert sorted(listed) == sorted(written | FROM_THE_ROOT)


def test_the_readme_leads_to_every_page() -> None:
    reached, left = {"README.md"}, ["README.md"]
    while left:
        page = left.pop()
        for target in LINK.findall(prose(page)):
            path = ((ROOT / page).parent / target.partition("#")[0]).resolve()
            path = path / "README.md" if path.is_dir() else path
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if name in PAGES and name not in reached:
                reached.add(name)
                left.append(name)
    assert [page for page in PAGES if page.startswith("docs/") and page not in reached] == []


def test_anchors_are_made_as_github_makes_them() -> None:
    assert slug("What is `--flag` called here?") == "what-is---flag-called-here"
    assert slug("2. A scheduler") == "2-a-scheduler"


def prose(page: str) -> str:
    """Without blocks of code, in which nothing is a link."""
    return CODE.sub("", (ROOT / page).read_text())


def is_taken(words: list[str]) -> bool:
    """With --help a command looks at the names of its options alone. A sentence may leave out the last value."""
    value = ["1"] if words and words[-1].startswith("--") else []
    return CliRunner().invoke(mcf, [*words, *value, "--help"]).exit_code == 0


def before_redirection(words: list[str]) -> list[str]:
    return words[: next((place for place, word in enumerate(words) if word in (">", "|", "&&")), None)]


@cache
def addresses() -> list[str]:
    """`GET /v1/runs/[^/]+`, and so on."""
    paths = create_app(Settings()).openapi()["paths"]
    return [
        f"{method.upper()} {re.sub('{[^}]+}', '[^/]+', path)}" for path, methods in paths.items() for method in methods
    ]


def leads(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    there = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    return there.exists() and (not anchor or (there.suffix == ".md" and anchor in anchors(there)))


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", CODE.sub("", page.read_text()), re.MULTILINE):
        name, number = slug(heading), 0
        while f"{name}-{number}" in found if number else name in found:
            number += 1
        found.add(f"{name}-{number}" if number else name)
    return found


def slug(heading: str) -> str:
    heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module, or something that its module defines."""
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    module, _, last = name.rpartition(".")
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.exists() and re.search(rf"\b{last}\b", path.read_text()) is not None


def configuration() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """A function among the settings, which the tests do not need, is left out."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    loaded: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    return loaded


def in_navigation(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from in_navigation(part)
