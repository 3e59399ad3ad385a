"""The static screen: on the syntax tree, reject only what no honest kernel needs; the rest is a remark.

It is cheap and explains itself. It is not a boundary: that is the sandbox, and the process that holds the verdict.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.judging.library_modules import is_module
from engine.judging.main_block import without_main_block
from engine.records import Reason

IMPORTS = frozenset(
    {
        "torch",
        "torch.nn",
        "torch.nn.functional",
        "torch.nn.init",
        "torch.nn.parameter",
        "triton",
        "triton.language",
        "triton.language.extra",
        "triton.tools.tensor_descriptor",
        "math",
        "typing",
        "functools",
        "itertools",
        "dataclasses",
        "__future__",
    }
)
"""`__future__` imports nothing. Below triton.language.extra everything is the device library."""

LISTED = {
    "collections": frozenset({"namedtuple", "OrderedDict", "defaultdict", "deque", "Counter"}),
    "enum": frozenset({"Enum", "IntEnum"}),
    "warnings": frozenset({"warn", "filterwarnings", "simplefilter"}),
}
"""Modules of which these names alone are free: the others hold modules."""

NAMES = {"torch.autograd.Function", *(f"{module}.{name}" for module, names in LISTED.items() for name in names)}
"""What may be imported from a module that is not allowed whole."""

JIT = frozenset({"triton.jit", "triton.runtime.jit.jit"})

CALLS = frozenset({"exec", "eval", "compile", "open", "__import__", "globals", "vars", "locals"})
DUNDERS = frozenset({"__init__", "__name__", "__post_init__", "__all__", "__main__"})
FRAMES = frozenset(
    [
        *("f_locals", "f_globals", "f_back", "f_builtins", "f_code", "f_trace", "tb_frame", "tb_next"),
        *("gi_frame", "gi_code", "gi_yieldfrom", "cr_frame", "cr_code", "cr_await", "cr_origin"),
        *("ag_frame", "ag_code", "ag_await"),
    ]
)
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

INTERNALS = frozenset(
    [
        *("_C", "_VF", "_dynamo", "_inductor", "_subclasses", "_ops", "_functorch", "_higher_order_ops", "_prims"),
        *("_refs", "_decomp", "_library", "_guards", "_jit_internal", "_numpy", "_python_dispatch", "_mode_utils"),
        *(
            "_pop_mode",
            "_pop_mode_temporarily",
            "_push_mode",
            "_get_current_function_mode_stack",
            "DisableTorchFunction",
        ),
        *("DisableTorchFunctionSubclass", "no_dispatch", "unset_fake_temporarily", "maybe_disable_fake_tensor_mode"),
        *("cpp_extension", "load_inline", "ctypes", "importlib", "subprocess", "builtins", "sys", "threading"),
        *("get_type_hints", "ForwardRef", "evaluate_forward_ref", "singledispatch", "singledispatchmethod"),
        *("FunctionType", "LambdaType", "CodeType", "MethodType", "attrgetter", "methodcaller"),
        *("update_wrapper", "make_dataclass", "load_library", "compile_module_from_src", "_compile_kernel"),
        *("_create_jit_fn", "_create_multi_output_jit_fn"),
        # enum's way to the names of any module, and modules that enum and collections hold.
        *("_convert_", "bltns", "_sys", "_collections_abc"),
        *("tofile", "from_file", "ctypeslib", "redispatch", "_op_dk", "_make_wrapper_subclass"),
    ]
)
"""Of anything: no tensor, module or configuration of a kernel has such a name. What evaluates text that was written as
an annotation, and what reaches attributes by text, are among them."""

POWERS = frozenset(
    [
        *("utils.data", "utils.dlpack", "distributed", "futures", "fx", "package", "testing", "profiler", "onnx"),
        *("export", "serialization", "overrides", "storage", "nn.parallel", "nn.modules.module", "autograd.graph"),
        *("library", "load", "save", "from_file", "cuda.jiterator"),
        *("runtime.build", "runtime.interpreter", "runtime.cache", "backends"),
    ]
)
"""Below torch and triton: what starts threads and processes, reads and writes files, writes code, or intercepts
calls."""

STANDARD = frozenset(sys.stdlib_module_names) - {"math", "random", "types", "signal", "select", "trace", "profile"}
"""Modules that an allowed one may have imported, less what is also a name of torch or Triton."""

_ASKED_FOR = frozenset({"numpy", "copy", "array", "code", "queue", "string", "time", "token", "types"})
"""Of STANDARD and FORBIDDEN_ATTRIBUTES what getattr() may read of anything: methods and fields have these names."""

MODULES = IMPORTS | {
    *LISTED,
    *("torch.cuda", "torch.autograd", "torch.backends", "torch.linalg", "torch.special", "torch.utils", "torch.fft"),
    *("torch.nn.modules", "torch.nn.init", "torch.nn.utils", "torch.nn.parameter", "triton.runtime", "triton.testing"),
    *("triton.language.math", "triton.language.core", "triton.language.standard", "triton.language.semantic"),
}

ASKING = frozenset({"getattr", "setattr", "delattr", "hasattr", "print"})
"""Calls whose first argument may be a module; what they do with it is looked at."""

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
    bound: dict[str, list[ast.expr]] = field(default_factory=dict)
    """What is assigned to a name, or to an element or attribute of what it stands for."""

    def dotted(self, node: ast.expr) -> str | None:
        """`torch.nn.functional` for `F`, resolved through import aliases and getattr; None for anything else."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            base = self.dotted(node.args[0]) if len(node.args) > 1 else None
            name = node.args[1] if base is not None else None
            return f"{base}.{name.value}" if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
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
    tree = without_main_block(tree)
    names = _collect(tree)
    for line, problem in _forbidden(tree, names):
        return Screened(Reason.FORBIDDEN, f"line {line}: {problem}")
    if "ModelNew" not in names.classes and "ModelNew" not in names.bound:
        return Screened(Reason.NO_MODEL, "expected a class ModelNew(nn.Module) at the module's top level, found none")
    jitted = {name for name, function in names.functions.items() if _is_jitted(function, names)}
    # Whether a kernel is launched shows when forward() runs: there are more ways to one than a text tells.
    if not any(names.dotted(node) in JIT for node in ast.walk(tree) if isinstance(node, ast.expr)):
        return Screened(Reason.NO_KERNEL, "expected at least one @triton.jit function, found none")
    return Screened(None, remarks=tuple(_remarks(tree, sorted(jitted - _reached(names, jitted)))))


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
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _bind(names, target, node.value, alone=len(node.targets) == 1)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            _bind(names, node.target, node.value, alone=True)
    return names


def _bind(names: _Names, target: ast.expr, value: ast.expr, *, alone: bool) -> None:
    if alone and isinstance(target, ast.Name) and (dotted := names.dotted(value)) is not None:
        names.imported.setdefault(target.id, dotted)
    for item in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
        while isinstance(item, (ast.Attribute, ast.Subscript)):
            item = item.value
        if isinstance(item, ast.Name):
            names.bound.setdefault(item.id, []).append(value)


def _forbidden(tree: ast.Module, names: _Names) -> Iterator[tuple[int, str]]:
    yield from _handed_around(tree, names)
    yield from _of_the_interpreter(tree, names)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            problem = _import_problem(node)
        elif isinstance(node, ast.Call):
            problem = _call_problem(node, names)
        elif isinstance(node, ast.Name):
            problem = _name_problem(node)
        elif isinstance(node, ast.Attribute):
            problem = _attribute_problem(node, names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("__"):
            problem = _text_problem(node.value)
        elif isinstance(node, ast.keyword) and node.arg in ("assigned", "updated"):
            problem = f"the argument {node.arg}, which copies attributes by name"
        elif isinstance(node, ast.MatchClass):
            problem = next(filter(None, map(_text_problem, node.kwd_attrs)), None)
        else:
            continue
        if problem is not None:
            yield node.lineno, problem


def _of_the_interpreter(tree: ast.Module, names: _Names) -> Iterator[tuple[int, str]]:
    """What a kernel's body can do in the interpreter alone: a value's `handle` is an array of numbers there."""
    loose = _jits_loosely(tree, names)
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for kernel in (function for function in functions if loose or _is_jitted(function, names)):
        for node in ast.walk(kernel):
            if isinstance(node, ast.Attribute) and node.attr == "handle":
                yield node.lineno, f"use of the attribute handle in the kernel {kernel.name}"


def _handed_around(tree: ast.Module, names: _Names) -> Iterator[tuple[int, str]]:
    """A module used as a value: whoever gets it can reach what its name would be refused for."""
    named = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("getattr", "setattr", "delattr") and id(node) not in named:
            yield node.lineno, f"{node.id} as a value"
        if isinstance(node, ast.FunctionDef) and node.name == "__del__":
            yield node.lineno, "definition of __del__, which runs when nobody looks"
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    asked = {id(node.args[0]) for node in called if isinstance(node.func, ast.Name) and node.func.id in ASKING}
    for parent in ast.walk(tree):
        plain = isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name)
        if plain or isinstance(parent, (ast.Attribute, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.If, ast.Assert)):
            continue
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (ast.Name, ast.Attribute, ast.Call)) or id(node) in asked:
                continue
            dotted = names.dotted(node) if isinstance(node, ast.Call) or isinstance(node.ctx, ast.Load) else None
            if dotted in MODULES or (dotted is not None and id(node) not in named and is_module(dotted)):
                yield node.lineno, f"the module {dotted} as a value"
            elif dotted == "functools.wraps" and id(node) not in named:
                yield node.lineno, f"{dotted} as a value"


def _text_problem(name: str) -> str | None:
    """An attribute by its name alone."""
    if name.startswith("__") and name.endswith("__") and name not in DUNDERS:
        return f"use of the attribute {name}"
    if name in FRAMES:
        return f"use of the frame attribute {name}"
    return f"use of {name}" if name in INTERNALS else None


def _import_problem(node: ast.Import | ast.ImportFrom) -> str | None:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif node.level:
        return "relative import"
    else:
        modules = [_imported_module(str(node.module), alias.name) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            problem = _dotted_problem(f"{node.module}.{alias.name}")
            if problem is not None:
                return problem
    for module in modules:
        if module not in IMPORTS | NAMES | LISTED.keys() and not module.startswith("triton.language."):
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
        if function.id == "getattr" and len(node.args) > 1:
            if not _is_text(node.args[1]):
                return "getattr() with a name that is not a literal"
            return _dotted_problem(names.dotted(node)) or _asked_problem(node.args[1])
        if function.id in ("setattr", "delattr") and node.args and names.dotted(node.args[0]) is not None:
            return f"{function.id}() on the imported {names.dotted(node.args[0])}"
    listed = any(isinstance(argument, ast.Starred) for argument in node.args)
    if names.dotted(function) == "functools.wraps" and (len(node.args) > 1 or listed):
        return "functools.wraps() with lists of names, which copies attributes by name"
    return None


def _asked_problem(name: ast.expr) -> str | None:
    """What getattr() may not read of anything."""
    text = name.value if isinstance(name, ast.Constant) else ""
    if text in (STANDARD | FORBIDDEN_ATTRIBUTES) - _ASKED_FOR:
        return f"getattr() of {text}"
    return _text_problem(str(text))


def _is_text(node: ast.expr) -> bool:
    """A literal name; or an f-string behind a literal prefix, which cannot spell a dunder: recurrent layers need
    `f"weight_ih_l{layer}"`."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.startswith("_")


def _name_problem(node: ast.Name) -> str | None:
    if node.id in CALLS and isinstance(node.ctx, ast.Load):
        return f"use of {node.id}"
    if node.id in INTERNALS:
        return f"use of {node.id}"
    if node.id.startswith("__") and node.id.endswith("__") and node.id not in DUNDERS:
        return f"use of {node.id}"
    return None


def _attribute_problem(node: ast.Attribute, names: _Names) -> str | None:
    problem = _text_problem(node.attr)
    if problem is not None:
        return problem
    if isinstance(node.ctx, (ast.Store, ast.Del)):
        target = names.dotted(node.value)
        if target is not None and not target.startswith("torch.backends"):
            return f"assignment to {target}.{node.attr}, which is imported"
    return _dotted_problem(names.dotted(node))


def _dotted_problem(dotted: str | None) -> str | None:
    if dotted is None:
        return None
    if dotted in COMPILED:
        return f"use of {dotted}: a kernel must be a @triton.jit function of this file"
    parts = dotted.split(".")
    below = {".".join(parts[1:end]) for end in range(2, len(parts) + 1)} if parts[0] in ("torch", "triton") else set()
    below -= {"backends"} if parts[0] == "torch" else set()
    private = parts[0] in ("typing", "functools", "dataclasses", "math") and any(p.startswith("_") for p in parts)
    inner = set(parts[1:])
    private = private or (parts[0] in LISTED and len(parts) > 1 and parts[1] not in LISTED[parts[0]])
    private = private or bool(inner & {"torch", "triton"})
    if private or inner & STANDARD or inner & (FORBIDDEN_ATTRIBUTES | INTERNALS) or below & POWERS:
        return f"use of {dotted}"
    return None


def _is_jitted(function: ast.FunctionDef, names: _Names) -> bool:
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if names.dotted(target) in JIT:
            return True
    return False


def _jits_loosely(tree: ast.Module, names: _Names) -> bool:
    """Whether triton.jit is used otherwise than as a decorator, so that any function may become a kernel."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    decorators = [decorator for function in functions for decorator in function.decorator_list]
    decorating = {id(one.func if isinstance(one, ast.Call) else one) for one in decorators}
    expressions = (node for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in decorating)
    return any(names.dotted(node) in JIT for node in expressions)


def _reached(names: _Names, jitted: set[str]) -> set[str]:
    """Names of functions and classes that ModelNew mentions, directly or through others. A name that is bound to
    something else of the module (`op = partial(_kernel)`, `Function.apply`) counts as a mention of all it names."""
    reached: set[str] = set()
    waiting: list[ast.AST] = [ast.Name("ModelNew")]
    while waiting:
        node = waiting.pop()
        for name in {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} | _methods(node):
            if name in reached:
                continue
            reached.add(name)
            target: ast.AST | None = names.functions.get(name) or names.classes.get(name)
            if target is not None:
                waiting.append(target)
            waiting += names.bound.get(name, [])
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
