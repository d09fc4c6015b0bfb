"""Hooks of the site: links out of docs/, lists as GitHub reads them, llms.txt and each page as Markdown.

MkDocs calls the functions named `on_...` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import griffe
from markdown_it import MarkdownIt
from mkdocs.structure.files import File
from mkdocs.structure.nav import Section

logger = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parents[2]
ASSETS = ("iframe-worker.js", "site.css")
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")
IN_ROOT = re.compile(r"(?<=\]\()docs/(?=[\w.-]+\))")
COMMENT = re.compile(r"^<!--.*?-->\n?", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r" *(`{3,}|~{3,})")
ITEM = re.compile(r"(?:[-*+]|\d+[.)])(?: +|$)")
OBJECT = re.compile(r"^::: (\S+)$", re.MULTILINE)


def on_files(files: Any, *, config: Any) -> Any:
    """Add what the pages need from outside docs/: assets, the two pages of the root, and every file they link to."""
    for name in ASSETS:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(Path(__file__).with_name(name))))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    linked = {target for page in files.documentation_pages() for target in OUTSIDE.findall(page.content_string)}
    for target in sorted(linked):
        if (ROOT / target).is_file() and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Have links to files of the repository lead to their copies, and nest lists as Python-Markdown reads them."""
    return nested_by_four(COMMENT.sub("", IN_ROOT.sub("", OUTSIDE.sub(r"\1", markdown))))


def on_page_content(html: str, *, page: Any, **_: Any) -> None:
    """Warn, and so end a strict build, if a page is not read as GitHub reads it."""
    source = page.file.content_string
    if not OBJECT.search(source):
        plain = MarkdownIt("commonmark").enable("table").render(source)
        for tag in ("li", "ul", "ol", "table", "tr", "pre", "h2", "h3"):
            ours, theirs = (len(re.findall(rf"<{tag}[ >]", text)) for text in (html, plain))
            if ours != theirs:
                logger.warning(f"{page.file.src_uri} has {ours} <{tag}> here and {theirs} in CommonMark.")


def nested_by_four(markdown: str) -> str:
    """Indent what belongs to a list item by four spaces a level. Put an empty line before a list, and after an item
    with several paragraphs.

    GitHub counts from the item's first letter, and needs no empty lines.
    """
    found: list[str] = []
    inside: list[int] = []  # the columns at which the items around a line begin
    fence = ""
    paragraphs = False  # the last item has an empty line in it
    for line in markdown.split("\n"):
        text = line.lstrip(" ")
        column = len(line) - len(text)
        item = ITEM.match(text)
        after_empty = not found or not found[-1].strip()
        if not fence and text and (after_empty or item):
            while inside and column < inside[-1]:
                inside.pop()
        if item and not fence:
            first = not inside and not ITEM.match(found[-1].lstrip() if found else "")
            if not after_empty and (paragraphs or (first and not found[-1].startswith(" "))):
                found.append("")
            paragraphs = False
            shift = 4 * len(inside) - (inside[-1] if inside else 0)
            inside.append(column + item.end())
        else:
            shift = 4 * len(inside) - inside[-1] if inside and column >= inside[-1] else 0
            paragraphs = paragraphs or bool(inside and not text)
        found.append(" " * (column + shift) + text if text else "")
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and text.strip() == fence:
            fence = ""
    return "\n".join(found)


def on_nav(nav: Any, **_: Any) -> None:
    """Keep the sections for llms.txt."""
    global sections
    sections = [(item.title, item.children) for item in nav.items if isinstance(item, Section)]


sections: list[tuple[str, list[Any]]] = []


def on_post_build(*, config: Any, **_: Any) -> None:
    """Write llms.txt, and beside each page its Markdown."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for title, pages in sections:
        lines += [f"## {title}", ""]
        for page in pages:
            source = Path(page.file.abs_src_path).read_text(encoding="utf-8")
            source = COMMENT.sub("", OUTSIDE.sub(r"\1", source))
            (site / page.file.src_uri).write_text(OBJECT.sub(described, source), encoding="utf-8")
            lines.append(f"- [{page.title}]({page.file.src_uri}): {first_sentence(source)}")
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, site / name)


def first_sentence(page: str) -> str:
    """Return the first sentence of a page's text, without links."""
    words = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = [block for block in words.split("\n\n") if re.match(r"[\w*`\[]", block.strip())]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(blocks[0].split())) if blocks else ""
    return re.split(r"(?<=[.?!]) ", text)[0].rstrip(":")


def described(match: re.Match[str]) -> str:
    """Return the signature and the docstring of an object as Markdown."""
    package, _, name = match[1].partition(".")
    found: Any = loaded(package)[name]
    found = found.final_target if found.is_alias else found
    docstring = found.docstring.value if found.docstring else ""
    code = found.signature() if found.is_function else f"class {found.name}"
    return f"### {match[1]}\n\n```python\n{code}\n```\n\n{docstring}"


def loaded(package: str) -> Any:
    """Return a package as griffe reads it, once."""
    if package not in packages:
        packages[package] = griffe.load(package, search_paths=[str(ROOT)], allow_inspection=False)
    return packages[package]


packages: dict[str, Any] = {}
