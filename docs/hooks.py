"""Adds pages to the site that are not files in this folder. `mkdocs.yml` names this file as a hook.

Pages of the documentation are written for the repository, where links name files. On the site,

- README, CONTRIBUTING, CHANGELOG and the notebooks are pages, too;
- each module of the package has a page with its API;
- each other file of the repository that a page links to has a page with its text;
- links, and code such as `instructjax/losses.py::gae`, lead to these pages.

A link to a file that does not exist is a warning, and `mkdocs build --strict` fails.
"""

from __future__ import annotations

import ast
import base64
import json
import pathlib
import posixpath
import re
import tomllib
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
ELSEWHERE = {  # files of the repository that are pages: their places on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "notebooks/README.md": "notebooks/index.md",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")},
}
ORIGIN = {page: path for path, page in ELSEWHERE.items()}
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".json": "json"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(?<![`\[\w])`((?:[\w.]+/)+\w+\.py)(?:::([\w.]+))?`(?![`\]])")


def on_config(config: MkDocsConfig) -> None:
    """Puts the pages of the API into the navigation."""
    position = config.nav.index("API")
    config.nav[position] = {"API": ["api/index.md", *({package: pages} for package, pages in _api_nav())]}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are not in this folder."""

    def add(page: str, content: str | bytes) -> None:
        files.append(File.generated(config, page, content=content))

    for path, page in ELSEWHERE.items():
        if path.endswith(".ipynb"):
            text, figures = _notebook(path, page)
            add(page, text)
            for name, figure in figures.items():
                add(name, figure)
        else:
            add(page, (ROOT / path).read_text())
    for page, content in _api_pages():
        add(page, content)
    for path in sorted(_linked_files(files) | _files_in_nav(config.nav)):
        add(_source_page(path), _source(path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files, and code that names them, into links to pages."""
    here = page.file.src_uri
    if here.startswith(("api/", "source/")):
        return markdown
    if here == ELSEWHERE["README.md"]:
        page.meta["hide"] = ["navigation"]  # one entry, which takes the room of the widest table

    def link(match: re.Match[str]) -> str:
        return match[1] + _on_site(match[2], here) + match[3]

    def code(match: re.Match[str]) -> str:
        path = next((p for p in (match[1], f"instructjax/{match[1]}") if (ROOT / p).is_file()), None)
        if path is None or path.endswith("__init__.py"):
            return match[0]
        if path.startswith("instructjax/"):
            name = _module(path) + (f".{match[2]}" if match[2] else "")
            return f"[{match[0]}][{name}]"
        if files.get_file_from_path(_source_page(path)) is None:
            return match[0]
        return f"[{match[0]}]({posixpath.relpath(_source_page(path), posixpath.dirname(here))})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else CODE.sub(code, LINK.sub(link, part)) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets long names in tables break between their parts."""

    def breaks(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"(::|[/._])(?=\w)", r"\1<wbr>", match[2]) + match[3]

    def cell(match: re.Match[str]) -> str:
        return re.sub(r"(<code>)([^<]*)(</code>)", breaks, match[0])

    return re.sub(r"<td\b.*?</td>", cell, html, flags=re.DOTALL)


def _target(link: str, here: str) -> str | None:
    """Returns the file of the repository that a link names, None for other links."""
    path = link.partition("#")[0]
    if not path or "://" in path or path.startswith("mailto:"):
        return None
    origin = ORIGIN.get(here, f"docs/{here}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))


def _on_site(link: str, here: str) -> str:
    """Returns a link of a page in the repository as a link of the site."""
    path = _target(link, here)
    if path is None or not (ROOT / path).is_file():
        return link  # MkDocs warns of those that lead nowhere
    anchor = link.partition("#")[2]
    return posixpath.relpath(_page(path), posixpath.dirname(here) or ".") + (f"#{anchor}" if anchor else "")


def _page(path: str) -> str:
    """Returns the place on the site of a file of the repository."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("instructjax/") and path.endswith(".py"):
        return _api_page(_module(path))
    return _source_page(path)


def _linked_files(files: Files) -> set[str]:
    """Returns the files whose text becomes a page, because a page links to them or names them in code."""
    found = set()
    for file in files.documentation_pages():
        if file.src_uri.startswith("api/"):
            continue
        text = file.content_string
        found |= {_target(match[2], file.src_uri) for match in LINK.finditer(text)}
        found |= {match[1] for match in CODE.finditer(text)}
    return {
        path for path in found if path and "/" in path and (ROOT / path).is_file() and _page(path).startswith("source/")
    }


def _files_in_nav(nav: list | dict | str) -> set[str]:
    """Returns the files whose pages the navigation names."""
    if isinstance(nav, str):
        path = nav.removeprefix("source/").removesuffix(".md") + ".py"
        return {path} if nav.startswith("source/") else set()
    return set().union(*map(_files_in_nav, nav.values() if isinstance(nav, dict) else nav))


def _source_page(path: str) -> str:
    return f"source/{path.removesuffix('.py')}.md"


def _source(path: str) -> str:
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}\n````\n"


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _packages() -> dict[str, list[str]]:
    """Returns the modules of each package and of the packages in it, in the order of the layers in pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    packages: dict[str, list[str]] = {}
    alone = []
    for name in (name.strip() for layer in layers for name in layer.split("|")):
        if (ROOT / "instructjax" / f"{name}.py").is_file():
            alone.append(f"instructjax.{name}")
        elif paths := sorted((ROOT / "instructjax" / name).rglob("[!_]*.py")):
            packages[name] = [_module(path.relative_to(ROOT).as_posix()) for path in paths]
    return {"instructjax": alone} | packages


def _api_page(module: str) -> str:
    name = module.removeprefix("instructjax.").replace(".", "/")
    return f"api/{name}.md"


def _api_nav() -> Iterator[tuple[str, list]]:
    for package, modules in _packages().items():
        yield package, [{_inside(package, module): _api_page(module)} for module in modules]


def _inside(package: str, module: str) -> str:
    """Returns the name of a module in its package, such as "tasks.squad"."""
    return module.removeprefix("instructjax.").removeprefix(f"{package}.")


def _api_pages() -> Iterator[tuple[str, str]]:
    """Yields each page of the API: a table of all modules, and a page for each."""
    parts = ["# API\n\nEvery module, from the top of the [layers](../architecture.md) down.\n"]
    for package, modules in _packages().items():
        parts.append(f"\n## {package}\n\n| module | what it is |\n|---|---|\n")
        for module in modules:
            page, name = _api_page(module), _inside(package, module)
            parts.append(f"| [`{name}`]({page.removeprefix('api/')}) | {_summary(module)} |\n")
            yield page, f"---\ntitle: {module.removeprefix('instructjax.')}\n---\n\n::: {module}\n"
    yield "api/index.md", "".join(parts)


def _summary(module: str) -> str:
    """Returns the first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def _notebook(path: str, page: str) -> tuple[str, dict[str, bytes]]:
    """Returns a committed notebook as Markdown, and its figures by their places on the site."""
    parts, figures = [], {}
    for cell in json.loads((ROOT / path).read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{pathlib.PurePath(page).stem}_{len(figures) + 1}.png"
                figures[f"notebooks/{name}"] = base64.b64decode(data["image/png"])
                parts.append(f"![figure {len(figures)}]({name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n", figures
