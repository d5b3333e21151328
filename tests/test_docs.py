"""The documents say what is true: generated tables, code and commands that run, links that lead somewhere."""

import ast
import contextlib
import doctest
import importlib.util
import inspect
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import epsball as eb
from epsball import networks
from epsball.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCE = ROOT / "src" / "epsball"
HOSTS = {"arxiv.org", "keepachangelog.com", "semver.org"}
page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def parse(text):
    return MarkdownIt("commonmark").enable("table").parse(text)


def prose(text):
    """The text without fenced code, line numbers kept."""
    kept, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        kept.append("" if inside or fence else line)
        inside ^= fence
    return kept


def fences(path):
    """Each fenced block as (language, content, line)."""
    return [(t.info, t.content, t.map[0]) for t in parse(path.read_text(encoding="utf-8")) if t.type == "fence"]


# ------------------------------------------------------------------------------------------------------- as Markdown


def test_the_documents_are_there():
    names = {path.relative_to(ROOT).as_posix() for path in PAGES}
    assert names >= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert names >= {"docs/attacks.md", "docs/sets.md", "docs/architecture.md"}
    assert names >= {f"docs/{name}.md" for name in ("index", "tutorial", "guides", "elsewhere", "mathematics", "api")}


def cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


@page
def test_tables_and_fences_render(page):
    text = page.read_text(encoding="utf-8")
    lines = prose(text)
    tables = [t for t in parse(text) if t.type == "table_open"]
    assert len(tables) == sum(bool(re.fullmatch(r"\|( :?-+:? \|)+", line)) for line in lines)
    for table in tables:
        rows = lines[slice(*table.map)]
        assert {len(cells(row)) for row in rows} == {len(cells(rows[0]))}, rows[0]
    assert sum(line.startswith("```") for line in text.splitlines()) == 2 * len(fences(page))
    assert all(info for info, _, _ in fences(page)), "each fence names its language"
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


def anchors(path):
    """What a link can point to: headings under the names that a Git host gives them, and named anchors."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<a id="([^"]+)">', text)
    for line in prose(text):
        if heading := re.fullmatch(r"#+ (.*)", line):
            found.append(re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-"))
    return found


def links(path):
    for token in parse(path.read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type == "link_open":
                yield child.attrs["href"]


@page
def test_links_lead_somewhere(page):
    assert len(anchors(page)) == len(set(anchors(page)))
    for link in links(page):
        if match := re.match(r"https?://([^/]+)", link):
            assert match[1] in HOSTS, f"{link}: a host that no document has linked to before; is it real?"
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_a_link_to_nowhere_would_be_found(tmp_path):
    (tmp_path / "x.md").write_text("# A `b`, c\n\n```text\n# no heading\n```\n\n[one](#a-b-c) [two](#none)\n")
    assert anchors(tmp_path / "x.md") == ["a-b-c"]
    assert list(links(tmp_path / "x.md")) == ["#a-b-c", "#none"]


@page
def test_paths_and_targets_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{re.escape(name[0] or name[1])}:", makefile, re.MULTILINE), name
    for name in re.findall(r"\b((?:src|tests|docs|benchmarks|\.ci)/[\w./-]*\w)", text):
        assert (ROOT / name).exists(), name


# --------------------------------------------------------------------------------------------------- what is generated


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_catalogue_in_the_docs_is_the_catalogue():
    make = load_script(ROOT / "docs" / "make_attacks.py")
    text = make.PAGE.read_text(encoding="utf-8")
    assert make.page(text) == text, "run python docs/make_attacks.py"
    changed = text.replace("cross-entropy (Goodfellow", "cross-entropy (Badfellow")
    assert changed != text == make.page(changed)
    for row in eb.recipes():
        assert text.count(f"`{row.name}` |") >= 1


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {eb.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{eb.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert f'\nversion = "{eb.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


# ------------------------------------------------------------------------------------------------------ code that runs


def similar(shown, printed):
    """The same words, and numbers up to what another processor rounds differently; seconds do not count."""
    first, second = (re.sub(r"[\d.]+ s\b", "", text) for text in (shown, printed))
    pattern = r"\d+\.\d+|\d+"
    assert re.sub(pattern, "#", first).split() == re.sub(pattern, "#", second).split()
    for a, b in zip(re.findall(pattern, first), re.findall(pattern, second), strict=True):
        # A digit inside a name, such as alg1, is the same; a count may be off by two, a measure by a twentieth.
        assert float(b) == pytest.approx(float(a), rel=0.05, abs=2 if "." not in a else 0.0), (a, b)


def test_similar_tells_different_outputs_apart():
    similar("59 SUCCESS, 0.52 s", "60 SUCCESS, 1.75 s")
    for other in ("59 STANDS, 0.52 s", "70 SUCCESS, 0.52 s"):
        with pytest.raises(AssertionError):
            similar("59 SUCCESS, 0.52 s", other)
    with pytest.raises(AssertionError):
        similar("rho1=0.105", "rho1=0.125")


@page
def test_python_blocks_run_and_print_what_is_shown(page):
    blocks = fences(page)
    names = {}
    for number, (language, code, line) in enumerate(blocks):
        if language != "python":
            continue
        if "cvxpy" in code:
            pytest.importorskip("cvxpy", reason="CVXPY is an optional extra")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line + 1) + code, str(page), "exec"), names)
        if printed.getvalue():
            assert blocks[number + 1][0] == "text", "what is printed is shown below"
            similar(blocks[number + 1][1], printed.getvalue())


def commands(path):
    """The lines of shell blocks and of inline code that call epsball, as words."""
    text = path.read_text(encoding="utf-8")
    lines = [line for language, code, _ in fences(path) if language == "sh" for line in code.splitlines()]
    lines += re.findall(r"`(epsball [^`]+)`", "\n".join(prose(text)))
    return [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["epsball"]]


def parsed(words):
    """Let the command line read the words, flags and types included, without running the command."""
    command = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):  # a group: its context keeps what comes after it
        context = command.make_context(command.name or "epsball", list(words), parent=context)
        name, *words = [*getattr(context, "_protected_args", []), *context.args]
        assert name in command.commands, name
        command = command.commands[name]
    return command.make_context(command.name, list(words), parent=context).params


ALL = [(path, words) for path in PAGES for words in commands(path) if not re.search(r"[|]|\.\.\.", " ".join(words))]


@pytest.mark.parametrize("words", [words for _, words in ALL], ids=lambda words: " ".join(words[:2]))
def test_commands_are_understood(words):
    wrong = [*words, "--no-such-flag"]
    if "--" not in " ".join(words):  # a command that is only named, without its arguments
        leaf = words[: 2 if words[0] == "paper" else 1]
        assert CliRunner().invoke(app, [*leaf, "--help"]).exit_code == 0
    else:
        parsed(words)
        with pytest.raises(Exception, match="no-such-flag"):
            parsed(wrong)


def offline(words):
    return "paper" not in words and not any(word.startswith("mnist") for word in words)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [words for path, words in ALL if path.name == "README.md" and offline(words)]
    assert {words[0] for words in chosen} >= {"list", "evaluate", "attack", "robustness", "train", "report"}
    for words in chosen:
        takes = {
            name for name in ("--limit", "--epochs") if name in CliRunner().invoke(app, [words[0], "--help"]).output
        }
        short = [w for name in sorted(takes) if name not in words for w in (name, "20" if name == "--limit" else "1")]
        result = CliRunner().invoke(app, [*words, *short])
        assert result.exit_code == 0, (words, result.stderr)
    assert {path.name for path in (tmp_path / "runs" / "digits").iterdir()} >= {
        *("results.parquet", "manifest.json", "report.html")
    }
    assert (tmp_path / "runs" / "perturbed" / "perturbed.npz").is_file()


@pytest.mark.slow
def test_the_readme_shows_what_the_command_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = fences(ROOT / "README.md")
    shown = [
        (code, blocks[i + 1][1])
        for i, (kind, code, _) in enumerate(blocks[:-1])
        if kind == "sh" and blocks[i + 1][0] == "text"
    ]
    assert shown
    for code, output in shown:
        last = shlex.split(code.splitlines()[-1], comments=True)
        assert last[0] == "epsball"
        similar(output, CliRunner().invoke(app, last[1:]).stdout)


def test_the_names_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"\beb\.(\w+)", text)):
        assert hasattr(eb, name), name
    fields = eb.AttackResult.__dataclass_fields__
    table = text.split("## What comes back")[1].split("##")[0]
    rows = [re.findall(r"`(\w+)`", cells(line)[0]) for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in row) == sorted(fields)
    for status in eb.Status:
        assert f"`{status.name}`" in table
    assert networks.shipped("digits-fcnn").is_file()


# ------------------------------------------------------------------------------------------------------ the pages


def letters(text):
    """What a docstring says, or the reStructuredText made of it, without spaces and marks."""
    return "".join(re.findall(r"\w", text))


def documented():
    """Every public object, and its public methods."""
    for name in eb.__all__:
        what = getattr(eb, name)
        yield name, what
        if inspect.isclass(what):
            members = inspect.getmembers(what, inspect.isfunction)
            yield from ((f"{name}.{key}", value) for key, value in members if not key.startswith("_"))
        elif inspect.ismodule(what):
            yield from ((f"{name}.{key}", getattr(what, key)) for key in what.__all__)


def test_docstrings_keep_their_words_on_the_page():
    pytest.importorskip("sphinx", reason="Sphinx is an optional extra")
    conf = load_script(ROOT / "docs" / "conf.py")
    listed = 0
    for name, what in documented():
        lines = (inspect.getdoc(what) or "").splitlines()
        given = letters("".join(lines))
        conf.as_text(None, "", name, what, None, lines)
        assert letters("".join(lines)) == given, name
        listed += any(line.startswith("- **") for line in lines)
    assert listed > 20, "arguments are told apart"


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)$", text, re.MULTILINE)
    names = {entry.removeprefix("epsball.") for entry in entries}
    assert names >= set(eb.__all__) - {"adapters"}
    assert names >= {f"adapters.{name}" for name in eb.adapters.__all__}
    for status in eb.Status:
        assert f"| `{status.name}` | {status.value} |" in text


def test_the_examples_of_docstrings_run():
    modules = [path for path in SOURCE.rglob("*.py") if "\n    >>> " in path.read_text(encoding="utf-8")]
    assert SOURCE / "adapters.py" in modules
    for path in modules:
        name = ".".join(["epsball", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        failed, tried = doctest.testmod(importlib.import_module(name))
        assert tried
        assert not failed, name


@pytest.mark.slow
def test_a_strict_build_refuses_what_leads_nowhere(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx is an optional extra")
    for name in ("conf.py", "static"):
        (tmp_path / name).symlink_to(ROOT / "docs" / name)
    page = tmp_path / "index.md"

    def build():
        words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", tmp_path, tmp_path / "made"]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    reference = "```{eval-rst}\n.. autofunction:: epsball.psnr\n```\n"
    page.write_text(f'# A title\n\n<a id="here"></a> [here](#here) $x_i \\le 1$\n\n{reference}')
    good = build()
    assert good.returncode == 0, good.stderr
    html = (tmp_path / "made" / "index.html").read_text(encoding="utf-8")
    assert "<math" in html
    assert not re.search(r'(?:src|<link[^>]*href)="(?:https?:)?//', html), "the page loads nothing from elsewhere"
    page.write_text(
        "# A title\n\n[a](nowhere.md) [b](#no-such-anchor) $\\nosuch{x}$\n\n"
        "```{eval-rst}\n.. autofunction:: epsball.no_such_name\n\n:class:`epsball.NoSuchClass`\n```\n"
    )
    bad = build()
    assert bad.returncode != 0
    for word in ("nowhere.md", "no-such-anchor", "nosuch", "no_such_name", "NoSuchClass"):
        assert word in bad.stderr


# -------------------------------------------------------------------------------------------------- who imports whom


def layers():
    """The table of docs/architecture.md: module -> line."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    part = text.split("## Who may import whom")[1].split("##")[0]
    rows = [cells(line) for line in part.splitlines() if re.match(r"\| \d+ \|", line)]
    return {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}


def imported(path):
    """The modules of epsball that a file imports, also inside functions, as dotted names without `epsball.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
            if node.module == "epsball":
                names = [f"epsball.{alias.name}" for alias in node.names]
            elif node.module and node.module.startswith("epsball."):
                whole = SOURCE.joinpath(*node.module.split(".")[1:])
                names = [
                    f"{node.module}.{a.name}" if (whole / f"{a.name}.py").is_file() else node.module for a in node.names
                ]
        else:
            continue
        yield from (name for name in names if name)


def test_files_import_only_from_above():
    lines = layers()
    files = [path for path in SOURCE.rglob("*.py") if path not in (SOURCE / "__init__.py", SOURCE / "__main__.py")]
    here = {path: path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in files}
    assert set(here.values()) == set(lines), "each module has its line in docs/architecture.md"
    for path in files:
        for name in imported(path):
            first, *rest = name.split(".")
            if first == "epsball" and rest:
                assert rest[0] in lines, (path, name)
                assert lines[rest[0]] <= lines[here[path]], f"{path} imports {name}, which stands below it"


def test_the_report_sees_rows_and_never_models():
    allowed = ("epsball.errors", "epsball.data.optional", "epsball.metrics.intervals", "epsball.report")
    for path in (SOURCE / "report").rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] != "torch", path
            assert not name.startswith("epsball") or name.startswith(allowed), (path, name)


def test_the_library_needs_torch_and_numpy_only():
    """Whatever else is imported, is imported inside the function that needs it; the command line may need its extra."""
    known = {*sys.stdlib_module_names, "torch", "numpy", "epsball"}
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in ("cli", "report"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert {name.split(".")[0] for name in names} <= known, (path, names)
