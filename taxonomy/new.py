"""The first lines of a technique: `python -m taxonomy new LEVEL/FAMILY/ID --kind KIND`.

What is written loads at once, so that every other command works, and fails `check_technique`, which says line by line
what is still to be written. The templates lie in `taxonomy/templates/`.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, get_args

from taxonomy.check import five_files, parse
from taxonomy.load import nearest
from taxonomy.schema import ID, LEVELS, Attribution, KindNode

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy

__all__ = ["new", "texts"]

TEMPLATES = Path(__file__).parent / "templates"


def new(tx: Taxonomy, address: str, kind: str) -> list[Path]:
    """Write the files of a technique that are not there yet; no file is ever replaced.

    Parameters
    ----------
    address : str
        ``level/family/id``; the family is one of families.yml.
    kind : str
        One of kinds.yml.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        If the address has another form, its level, family or kind is unknown, or its id is taken; with what would be
        right.
    """
    _refuse(tx, address, kind)
    written = []
    for path, text in texts(tx, address, kind).items():
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _refuse(tx: Taxonomy, address: str, kind: str) -> None:
    parts = address.strip("/").split("/")
    if len(parts) != 3:
        raise ValueError(f"address: expected LEVEL/FAMILY/ID, such as model/pruning/magnitude-pruning, got {address!r}")
    level, family, name = parts
    if level not in LEVELS:
        raise ValueError(f"level: {level!r} is none of {', '.join(LEVELS)}")
    if family not in tx.families or tx.families[family].level != level:
        own = [key for key, entry in tx.families.items() if entry.level == level]
        raise ValueError(f"family: {family!r} is none of the {level} level, which has {', '.join(own)} (families.yml)")
    if not re.match(ID, name):
        raise ValueError(f"id: expected lower case with hyphens, such as magnitude-pruning, got {name!r}")
    if name in tx.techniques:
        raise ValueError(f"id: {name!r} is taken by {tx[name].address}")
    if kind not in tx.kinds:
        raise ValueError(f"kind: {kind!r} is none of {', '.join(tx.kinds)}{nearest(kind, tx.kinds)}")


def texts(tx: Taxonomy, address: str, kind: str) -> dict[Path, str]:
    """What a technique's files say at first, by path."""
    level, family, name = address.strip("/").split("/")
    files, entry = five_files(f"{level}/{family}/{name}"), tx.kinds[kind]  # type: ignore[index]
    title = name.replace("-", " ")
    words = {
        "id": name,
        "name": title[:1].upper() + title[1:],
        "kind": kind,
        "protocol": kind.replace("-", "_"),
        "family": tx.families[family].title,
        "place": tx.families[family].definition,
        "module": f"kernels.{level}.{family}.{name.replace('-', '_')}",
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "exemplar": tx[entry.exemplar].address,
        "baseline": tx[entry.exemplar].baseline,
        "attributions": ", ".join(get_args(Attribution)),
        "family_id": family,
        "oracle": entry.oracle,
        "held": entry.held,
    }
    words["base"], words["imports"], words["methods"] = _skeleton(entry)

    def filled(template: str) -> str:
        return Template((TEMPLATES / template).read_text("utf-8")).substitute(words)

    package = files["code"].parent / "__init__.py"
    return {
        files["knowledge"]: filled("technique.yml.txt"),
        package: f'"""{words["family"]}."""\n',
        files["code"]: filled("technique.py.txt"),
        files["test"]: filled("test.py.txt"),
        files["chapter"]: filled("chapter.md.txt"),
    }


def _skeleton(entry: KindNode) -> tuple[str, str, str]:
    """The base class in brackets, the line that imports it, and the methods still to be written."""
    if entry.base is None:
        owed = [
            (_with_self(parse(line)), line.partition(")")[2].strip(" ->") or "what it takes") for line in entry.contract
        ]
        return (
            "",
            "from typing import Any\n",
            "\n".join(_method(function, f"returns {gives}; refuses what it cannot do") for function, gives in owed),
        )
    home, _, name = entry.base.partition(":")
    module = import_module(home)
    base = getattr(module, name)
    methods = {key: getattr(base, key) for key in sorted(base.__abstractmethods__)}
    declared = {key: _declared(method) for key, method in methods.items()}
    used = {part.id for function in declared.values() for part in ast.walk(function) if isinstance(part, ast.Name)}
    found = {key: getattr(module, key) for key in sorted(used) if hasattr(module, key)}
    modules = [f"import {value.__name__} as {key}\n" for key, value in found.items() if inspect.ismodule(value)]
    names = sorted({name, *(key for key, value in found.items() if not inspect.ismodule(value))})
    bodies = [_method(declared[key], (inspect.getdoc(methods[key]) or "").partition("\n")[0]) for key in methods]
    imports = "\n".join(["", *modules, f"from {home} import {', '.join(names)}\n"])
    return f"({name})", imports, "\n".join(bodies)


def _with_self(function: ast.FunctionDef) -> ast.FunctionDef:
    for argument in (*function.args.args, *function.args.kwonlyargs):
        argument.annotation = ast.Name("Any")
    function.args.args.insert(0, ast.arg("self"))
    function.returns = ast.Name("Any")
    return function


def _declared(method: Any) -> ast.FunctionDef:
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list = []
    return function


def _method(function: ast.FunctionDef, says: str) -> str:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    arguments = re.sub(r"(: [^,=]+)=", r"\1 = ", ast.unparse(function.args))  # as ruff writes an annotated default
    return (
        f"    def {function.name}({arguments}){returns}:\n"
        f'        """<write: {textwrap.shorten(says.replace(">", ""), 90, placeholder=" ...")}>"""\n'
        f"        raise NotImplementedError\n"
    )
