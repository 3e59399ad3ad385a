"""The static screen: on the syntax tree, reject only what no honest kernel needs; the rest is a remark.

It is cheap and explains itself. It is not a boundary: that is the sandbox, and the process that holds the verdict.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.records import Reason

IMPORTS = frozenset(
    {
        "torch",
        "torch.nn",
        "torch.nn.functional",
        "triton",
        "triton.language",
        "triton.language.extra",
        "triton.tools.tensor_descriptor",
        "math",
        "typing",
        "functools",
        "dataclasses",
        "__future__",
    }
)
"""`__future__` imports nothing. Below triton.language.extra everything is the device library."""

CALLS = frozenset({"exec", "eval", "compile", "open", "__import__", "globals", "vars", "locals"})
DUNDERS = frozenset({"__init__", "__name__", "__post_init__"})
FRAMES = frozenset({"f_locals", "f_globals", "f_back", "f_builtins", "gi_frame", "cr_frame", "tb_frame"})
FORBIDDEN_ATTRIBUTES = frozenset(
    [
        *("load_inline", "cpp_extension", "_dynamo", "_inductor", "multiprocessing", "hub"),
        # Modules that an allowed one has imported and so carries.
        *("os", "sys", "ctypes", "np", "numpy", "threading", "importlib", "builtins", "subprocess", "inspect", "gc"),
        # What switches off the modes that record a call.
        *("_python_dispatch", "_disable_current_modes", "_DisableTorchDispatch"),
    ]
)
"""Of imported names."""

COMPILED = frozenset({"torch.compile", "torch.jit.script", "torch.jit.trace"})

_REMARKS = {
    "data_ptr": "reads data_ptr",
    "Stream": "uses CUDA streams",
    "CUDAGraph": "captures CUDA graphs",
    "half": "casts to half precision",
    "bfloat16": "casts to bfloat16",
}


@dataclass(frozen=True, slots=True)
class Screened:
    """`reason` None: passed. `message` names line and rule; `remarks` stay with the verdict."""

    reason: Reason | None
    message: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Names:
    """What the module's names stand for: alias -> dotted import."""

    imported: dict[str, str] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    bound: dict[str, ast.expr] = field(default_factory=dict)
    """Values of plain assignments, by name."""

    def dotted(self, node: ast.expr) -> str | None:
        """`torch.nn.functional` for `F`, resolved through import aliases; None for anything else."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return None


def screen(source: str) -> Screened:
    """Judge the text alone: syntax, forbidden constructs, a ModelNew, and a jitted function that forward can reach."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        text = (getattr(error, "text", None) or "").strip()
        detail = getattr(error, "msg", str(error))
        return Screened(Reason.SYNTAX, f"line {line}: {detail}" + (f": {text}" if text else ""))
    names = _collect(tree)
    for line, problem in _forbidden(tree, names):
        return Screened(Reason.FORBIDDEN, f"line {line}: {problem}")
    if "ModelNew" not in names.classes:
        return Screened(Reason.NO_MODEL, "expected a class ModelNew(nn.Module) at the module's top level, found none")
    jitted = {name for name, function in names.functions.items() if _is_jitted(function, names)}
    if not jitted:
        return Screened(Reason.NO_KERNEL, "expected at least one @triton.jit function, found none")
    reached = _reached(names, jitted)
    if not reached & jitted:
        return Screened(Reason.NO_KERNEL, f"no jitted function is reachable from ModelNew: {', '.join(sorted(jitted))}")
    return Screened(None, remarks=tuple(_remarks(tree, sorted(jitted - reached))))


def _collect(tree: ast.Module) -> _Names:
    names = _Names()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.imported.update(
                (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2 for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            names.imported.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.FunctionDef):
            names.functions.setdefault(node.name, node)
        elif isinstance(node, ast.ClassDef):
            names.classes.setdefault(node.name, node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            _bind(names, node.targets[0].id, node.value)
    return names


def _bind(names: _Names, name: str, value: ast.expr) -> None:
    names.bound.setdefault(name, value)
    dotted = names.dotted(value)
    if dotted is not None:
        names.imported.setdefault(name, dotted)


def _forbidden(tree: ast.Module, names: _Names) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            problem = _import_problem(node)
        elif isinstance(node, ast.Call):
            problem = _call_problem(node, names)
        elif isinstance(node, ast.Name):
            problem = _name_problem(node)
        elif isinstance(node, ast.Attribute):
            problem = _attribute_problem(node, names)
        else:
            continue
        if problem is not None:
            yield node.lineno, problem


def _import_problem(node: ast.Import | ast.ImportFrom) -> str | None:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif node.level:
        return "relative import"
    else:
        modules = [_imported_module(str(node.module), alias.name) for alias in node.names]
    for module in modules:
        if module not in IMPORTS and not module.startswith("triton.language."):
            return f"import of {module}; allowed are {', '.join(sorted(IMPORTS - {'__future__'}))}"
    return None


def _imported_module(module: str, name: str) -> str:
    """What `from module import name` reaches into: a module of its own, or a name of an allowed module."""
    return module if module in IMPORTS and f"{module}.{name}" not in _SUBMODULES else f"{module}.{name}"


_SUBMODULES = frozenset(
    f"torch.{name}"
    for name in ("utils", "_dynamo", "_inductor", "multiprocessing", "distributed", "hub", "compiler", "package", "ops")
) | {"triton.testing", "triton.runtime", "triton.compiler", "triton.backends"}


def _call_problem(node: ast.Call, names: _Names) -> str | None:
    function = node.func
    if isinstance(function, ast.Name):
        if function.id in CALLS:
            return f"call of {function.id}()"
        if function.id == "getattr" and len(node.args) > 1 and not _is_text(node.args[1]):
            return "getattr() with a name that is not a literal"
        if function.id in ("setattr", "delattr") and node.args and names.dotted(node.args[0]) is not None:
            return f"{function.id}() on the imported {names.dotted(node.args[0])}"
    return None


def _is_text(node: ast.expr) -> bool:
    """A literal name; or an f-string behind a literal prefix, which cannot spell a dunder: recurrent layers need
    `f"weight_ih_l{layer}"`."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.startswith("_")


def _name_problem(node: ast.Name) -> str | None:
    if node.id in CALLS and isinstance(node.ctx, ast.Load):
        return f"use of {node.id}"
    if node.id.startswith("__") and node.id.endswith("__") and node.id not in DUNDERS:
        return f"use of {node.id}"
    return None


def _attribute_problem(node: ast.Attribute, names: _Names) -> str | None:
    if node.attr.startswith("__") and node.attr.endswith("__") and node.attr not in DUNDERS:
        return f"use of the attribute {node.attr}"
    if node.attr in FRAMES:
        return f"use of the frame attribute {node.attr}"
    if isinstance(node.ctx, (ast.Store, ast.Del)):
        target = names.dotted(node.value)
        if target is not None and not target.startswith("torch.backends"):
            return f"assignment to {target}.{node.attr}, which is imported"
    dotted = names.dotted(node)
    if dotted in COMPILED:
        return f"use of {dotted}: a kernel must be a @triton.jit function of this file"
    if dotted is not None and set(dotted.split(".")) & FORBIDDEN_ATTRIBUTES:
        return f"use of {dotted}"
    return None


def _is_jitted(function: ast.FunctionDef, names: _Names) -> bool:
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if names.dotted(target) in ("triton.jit", "triton.runtime.jit.jit"):
            return True
    return False


def _reached(names: _Names, jitted: set[str]) -> set[str]:
    """Names of functions and classes that ModelNew mentions, directly or through others. A name that is bound to
    something else of the module (`op = partial(_kernel)`, `Function.apply`) counts as a mention of all it names."""
    reached: set[str] = set()
    waiting: list[ast.AST] = [names.classes["ModelNew"]]
    while waiting:
        node = waiting.pop()
        for name in {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} | _methods(node):
            if name in reached:
                continue
            reached.add(name)
            target: ast.AST | None = names.functions.get(name) or names.classes.get(name)
            if target is not None:
                waiting.append(target)
            if name in names.bound:
                waiting.append(names.bound[name])
    return reached & (jitted | set(names.functions))


def _methods(node: ast.AST) -> set[str]:
    return {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}


def _remarks(tree: ast.Module, unused: list[str]) -> Iterator[str]:
    for name in unused:
        yield f"jitted function {name} is not used"
    seen: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            seen.add("uses try/except")
        elif isinstance(node, ast.Attribute) and node.attr in _REMARKS:
            seen.add(_REMARKS[node.attr])
    yield from sorted(seen)
