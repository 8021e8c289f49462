"""Arguments of a `_target_` read from its source text, so that a typo is found before torch is imported."""

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Signature:
    """Argument names with their annotations; `open` if the callable also takes names that the text does not show."""

    arguments: dict[str, ast.expr | None]
    open: bool = False


@functools.cache
def signature(target: str) -> Signature | None:
    """The arguments of a class, function or classmethod by its dotted name; None if its text cannot be found."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found = definition(".".join(parts[:cut]), parts[cut])
        if found is None:
            continue
        module = found[0]
        node: ast.stmt | None = found[1]
        for name in parts[cut + 1 :]:
            members = getattr(node, "body", [])
            node = next((m for m in members if getattr(m, "name", None) == name), None)
        return None if node is None else _arguments(module, node)
    return None


def classes(module: str) -> list[str]:
    """Public classes that a module's text defines; empty if there is no such module."""
    path = _module_file(module)
    found = [] if path is None else _tree(path).body
    return [n.name for n in found if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def classmethods(node: ast.ClassDef) -> list[str]:
    """Public classmethods that stand in the body of a class itself."""
    found = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    return [m.name for m in found if any(ast.unparse(d) == "classmethod" for d in m.decorator_list)]


def modules(package: str) -> list[str]:
    """Modules of one of the project's packages, by full name."""
    return [f"{package}.{p.stem}" for p in sorted((ROOT / package).glob("*.py")) if p.stem != "__init__"]


def _module_file(module: str) -> Path | None:
    top, *rest = module.split(".")
    if (ROOT / top).is_dir():
        base = ROOT / top
    else:
        try:
            spec = importlib.util.find_spec(top)  # a top-level name is found without importing it
        except (ImportError, ValueError):
            return None
        if spec is None or not spec.submodule_search_locations:
            return None
        base = Path(next(iter(spec.submodule_search_locations)))
    path = base.joinpath(*rest)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((c for c in candidates if c.is_file()), None)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(module: str, name: str, depth: int = 0) -> tuple[str, ast.stmt] | None:
    """Where `name`, seen from `module`, is defined; follows `from x import name`, also under TYPE_CHECKING."""
    path = _module_file(module)
    if path is None or depth > 8:
        return None
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for part in ast.walk(tree):
        if not isinstance(part, ast.ImportFrom):
            continue
        for alias in part.names:
            if (alias.asname or alias.name) == name:
                source = _absolute(package, part.module, part.level)
                found = definition(source, alias.name, depth + 1)
                if found is not None:
                    return found
    return None


def _absolute(package: str, module: str | None, level: int) -> str:
    if level == 0:
        return module or ""
    base = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*base, *([module] if module else [])])


def _arguments(module: str, node: ast.stmt) -> Signature:
    if isinstance(node, ast.ClassDef):
        init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        if init is not None:
            return _function_arguments(module, init, owner=node)
        if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            fields = [m for m in node.body if isinstance(m, ast.AnnAssign)]
            return Signature({ast.unparse(m.target): m.annotation for m in fields}, open=bool(node.bases))
        return _base_arguments(module, node)
    if isinstance(node, ast.FunctionDef):
        return _function_arguments(module, node, owner=None)
    return Signature({}, open=True)


def _function_arguments(module: str, node: ast.FunctionDef, owner: ast.ClassDef | None) -> Signature:
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments = {a.arg: a.annotation for a in listed if a.arg not in ("self", "cls")}
    if node.args.kwarg is None:
        return Signature(arguments)
    if owner is None or not _passes_on(node, node.args.kwarg.arg):
        return Signature(arguments, open=True)
    base = _base_arguments(module, owner)
    return Signature(base.arguments | arguments, base.open)


def _passes_on(init: ast.FunctionDef, kwarg: str) -> bool:
    """Whether `super().__init__(..., **kwarg)` stands in the body."""
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            return any(k.arg is None and ast.unparse(k.value) == kwarg for k in node.keywords)
    return False


def _base_arguments(module: str, node: ast.ClassDef) -> Signature:
    if not node.bases or not isinstance(node.bases[0], ast.Name):
        return Signature({}, open=True)
    found = definition(module, node.bases[0].id)
    return Signature({}, open=True) if found is None else _arguments(*found)


def kinds(annotation: ast.expr | None) -> set[str]:
    """What an annotation takes: int, float, bool, str, None, container, literal:'x'; "any" where unknown."""
    match annotation:
        case ast.Constant(value=None):
            return {"None"}
        case ast.Constant(value=str() as text):
            return kinds(ast.parse(text, mode="eval").body)
        case ast.Name(id="int" | "float" | "bool" | "str" as name):
            return {name}
        case ast.Name(id="list" | "tuple" | "dict" | "List" | "Tuple" | "Dict" | "Sequence" | "Mapping"):
            return {"container"}
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return kinds(left) | kinds(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return kinds(inner) | {"None"}
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return set().union(*(kinds(m) for m in members))
        case ast.Subscript(value=ast.Name() as outer) if kinds(outer) == {"container"}:
            return {"container"}
    return {"any"}
