"""Lowers one kernel's TTIR to machine code. A child of kind `compile` of the fork server.

One command, `compile` {ttir, target, options}, answered by {"cubin": base64, "facts": {...}} or {"refused": text}; a
failing pass or assembler is `child.serve`'s {"error": ...}. The text comes from a process that a candidate owns: it is
parsed here and nowhere else, and a child serves one kernel, so that a broken one spoils no other.

What an honest front end never emits is refused after parsing, on the operations themselves: a spelling hides nothing.
* Dialects other than Triton's own and plain arithmetic and control flow: `llvm.inline_asm` and its kin would do what
  inline assembly does, and attributes of the module decide how much scratch memory is asked for.
* Bodiless functions, and external symbols other than libdevice's `__nv_*`: a linker may resolve `vprintf`, `malloc`.
* Inline assembly except single arithmetic instructions on registers (`ARITHMETIC`): in the executor's context it could
  read clocks (`%globaltimer`), see which block it is (`%smid`), discard cache lines, wait, or trap.
* `tt.print` and `tt.assert`, which triton emits for `device_print` and under debug=True: one writes to the executor's
  streams, the other traps its context. They are not stripped: what is judged is what was written.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.canonical import Json
from engine.judging import child
from engine.judging.wire import Channel
from profilers.static import Resources, bundled_cuobjdump, parse_resource_usage

DIALECTS = frozenset({"tt", "arith", "math", "scf", "ub"})
OPERATIONS = frozenset({"builtin.module", "cf.br", "cf.cond_br", "gpu.barrier"})
"""Allowed besides the dialects above: branches, and `tl.debug_barrier`; `cf.assert` is not."""

ATTRIBUTES = frozenset({"noinline", "tt.divisibility", "tt.contiguity", "tt.constancy", "tt.pointer_range"})
"""Of functions and their parameters, as Triton's front end writes them."""

_ARITHMETIC = (
    "abs add addc and bfe bfi bfind bmsk brev clz cnot copysign cos cvt div dp2a dp4a ex2 fma lg2 lop3 mad mad24 madc "
    "max min mov mul mul24 neg not or popc prmt rcp rem rsqrt sad selp set setp shf shl shr sin slct sqrt sub subc "
    "szext tanh testp xor"
)
ARITHMETIC = frozenset(_ARITHMETIC.split())
"""PTX instructions that only compute on registers."""

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DECLARATION = re.compile(r"\.reg\s+\.\w+((?:\s*,?\s*%?\w+(?:<\d+>)?)+)")
_INSTRUCTION = re.compile(r"(?:@!?%?\w+\s+)?([a-z]\w*)(?:\.\w+|::\w+)*\s([\w\s%$.,+\-{}|!]*)")
_ATTRIBUTES = re.compile(r"\{([^{}]*)\}")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NESTED = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)")
_PARAMETER = re.compile(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)\b[^\[\]]*(?:\[(\d+)\])?\s*")


class Refused(Exception):
    """The kernel holds what no honest front end emits, or what the executor cannot launch."""


def assembly_problem(text: str) -> str | None:
    """Why a string of inline PTX is not plain arithmetic on its operands and own registers; None when it is."""
    if not re.fullmatch(r"[\t\n -~]*", text):
        return "it holds characters other than printable ASCII"
    declared: set[str] = set()
    for statement in _COMMENT.sub(" ", text).split(";"):
        line = statement.strip(" \t\r\n{}") if statement.count("{") != statement.count("}") else statement.strip()
        if not line:
            continue
        declaration = _DECLARATION.fullmatch(line)
        if declaration is not None:
            declared |= set(re.findall(r"%\w+", declaration.group(1)))
            continue
        instruction = _INSTRUCTION.fullmatch(line + " ")
        if instruction is None or instruction.group(1) not in ARITHMETIC:
            return f"`{' '.join(line.split())[:80]}` is not an arithmetic instruction on registers"
        operands = instruction.group(2)
        if re.search(r"\$(?!\d)", operands):
            return f"`{' '.join(line.split())[:80]}` uses an operand other than $<number>"
        # What is left after `%` and is not declared here is a special register: a clock, an id, a mask.
        foreign = [name for name in re.findall(r"%\w*", operands) if not _is_declared(name, declared)]
        if foreign:
            return f"it reads the special register {foreign[0]}"
    return None


def _is_declared(name: str, declared: set[str]) -> bool:
    return name in declared or name.rstrip("0123456789") in declared


def _operations(module: Any) -> Iterator[Any]:
    found: list[Any] = []
    module.walk(found.append)
    yield from found


def screen(module: Any) -> None:
    """Refuse what the docstring of this file names; raises Refused."""
    public, modules = [], 0
    for operation in _operations(module):
        name = operation.get_name()
        if name.partition(".")[0] not in DIALECTS and name not in OPERATIONS:
            raise Refused(f"operation {name}: expected Triton IR after the front end ({', '.join(sorted(DIALECTS))})")
        modules += name == "builtin.module"
        if name == "tt.func":
            symbol = _function(module, operation)
            if operation.get_str_attr("sym_visibility") in (None, "public"):
                public.append(symbol)
        else:
            _operation(name, operation)
    if len(public) != 1 or modules != 1:
        raise Refused(f"expected one public function, found {len(public)}: {', '.join(public)[:200]}")
    header = _QUOTED.sub('""', module.str_nodebug().partition("\n")[0])
    if header.strip() != "module {":
        raise Refused(f"expected a module without attributes, found {header[:200]}")


def _operation(name: str, operation: Any) -> None:
    if name in ("tt.print", "tt.assert"):
        raise Refused(f"{name}: remove device_print, device_assert and debug=True from the kernel")
    if name == "tt.elementwise_inline_asm":
        problem = assembly_problem(operation.get_str_attr("asm_string") or "")
        if problem is not None:
            raise Refused(f"inline assembly: {problem}; write it with tl or libdevice functions")
    if name == "tt.extern_elementwise":
        symbol, library = operation.get_str_attr("symbol") or "", operation.get_str_attr("libname") or ""
        path = operation.get_str_attr("libpath") or ""
        if not re.fullmatch(r"__nv_\w+", symbol) or library not in ("", "libdevice") or path:
            raise Refused(
                f"external function {symbol!r} of {library!r} at {path!r}: only libdevice's __nv_* are linked"
            )


def _function(module: Any, operation: Any) -> str:
    symbol = str(operation.get_str_attr("sym_name"))
    if re.match(r"llvm\.|nvvm\.|__nv", symbol):
        raise Refused(f"function {symbol}: the name belongs to the compiler")
    if operation.get_region(0).empty():
        raise Refused(f"external function {symbol}: it has no body")
    header = module.get_function(symbol).str_nodebug().partition("\n")[0].removesuffix("{")
    unknown = _attribute_names(header) - ATTRIBUTES
    if unknown:
        raise Refused(f"function {symbol}: unknown attributes {', '.join(sorted(unknown))[:200]}")
    return symbol


def _attribute_names(header: str) -> set[str]:
    """Names in the attribute dictionaries of a printed function header; a nested dictionary's braces are a name."""
    plain = _QUOTED.sub('""', header)
    names: set[str] = set()
    for group in _ATTRIBUTES.findall(plain):
        while _NESTED.search(group):
            group = _NESTED.sub("", group)
        names |= {item.partition("=")[0].strip() for item in group.split(",") if item.strip()}
    return names | set(re.findall(r"[{}]", _ATTRIBUTES.sub("", plain)))


def parameter_sizes(ptx: str) -> list[int]:
    """Bytes of each parameter of the one `.entry` in a PTX text, in order."""
    entry = re.search(r"\.visible\s+\.entry\s+\w+\s*\(([^)]*)\)", ptx)
    if entry is None:
        raise Refused("the lowered kernel has no entry function")
    sizes: list[int] = []
    for parameter in filter(str.strip, entry.group(1).split(",")):
        match = _PARAMETER.fullmatch(parameter)
        if match is None:
            raise Refused(f"unknown parameter {parameter.strip()[:100]}")
        sizes.append(int(match.group(2) or int(match.group(1)) // 8))
    return sizes


def _options(backend: Any, options: Json) -> dict[str, Any]:
    """`options` as this Triton understands them: it ignores silently what it does not know."""
    understood = backend.parse_options(dict(options))
    for name, value in options.items():
        if getattr(understood, name, None) != value:
            raise Refused(f"option {name}={value!r}: this Triton has no such option")
    return dict(options)


def compile_kernel(folder: Path, message: Json) -> Json:
    """Parse, screen and lower; the facts that a launch needs beside the cubin."""
    import triton
    from triton import knobs
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    # Line tables would hold this child's folder, and equal kernels would differ.
    knobs.compilation.disable_line_info = True
    target = GPUTarget("cuda", int(message["target"].removeprefix("sm_").rstrip("a")), 32)
    backend = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    path = folder / "kernel.ttir"
    path.write_text(message["ttir"], encoding="utf-8")
    module = ir.parse_mlir_module(str(path), context)
    try:
        screen(module)
        options = _options(backend, message["options"])
        signature = module.get_function_signature(module.get_function(module.get_entry_func_name()))
        compiled = triton.compile(str(path), target=target, options=options)
        sizes = parameter_sizes(compiled.asm["ptx"])
    except Refused as refused:
        return {"refused": str(refused)}
    return {
        "cubin": base64.b64encode(compiled.asm["cubin"]).decode(),
        "facts": _facts(compiled, _resources(compiled, folder), list(signature), sizes),
    }


def _facts(compiled: Any, usage: Resources | None, signature: list[str], sizes: list[int]) -> Json:
    """`compiler.Lowered` as JSON: the names of metadata that the launcher of Triton 3.4 to 3.6 reads. The passes change
    num_warps where they specialise warps; clusters have dimensions of their own before 3.6; profile scratch exists
    since 3.5."""
    metadata = compiled.metadata
    blocks = int(metadata.num_ctas)
    cluster = [int(size) for size in getattr(metadata, "cluster_dims", (blocks, 1, 1))]
    return {
        "symbol": metadata.name,
        "signature": signature,
        "parameter_bytes": sizes,
        "num_warps": int(metadata.num_warps),
        "num_ctas": blocks,
        "cluster": cluster,
        "shared_bytes": int(metadata.shared),
        "global_scratch_bytes": int(metadata.global_scratch_size or 0),
        "global_scratch_align": int(metadata.global_scratch_align or 1),
        "profile_scratch_bytes": int(getattr(metadata, "profile_scratch_size", 0) or 0),
        "profile_scratch_align": int(getattr(metadata, "profile_scratch_align", 1) or 1),
        "cooperative": bool(metadata.launch_cooperative_grid),
        "registers": None if usage is None else usage.registers,
        "spill_bytes": None if usage is None else usage.spill_bytes,
    }


def _resources(compiled: Any, folder: Path) -> Resources | None:
    tool = bundled_cuobjdump()
    if tool is None:
        return None
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    command = [tool, "--dump-resource-usage", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return next((usage for usage in parse_resource_usage(done.stdout) if usage.kernel == compiled.metadata.name), None)


def main(channel: Channel, layers: tuple[str, ...]) -> None:
    """Serve until the channel closes; called in a confined child of the fork server."""
    child.serve(channel, layers, Path(os.environ["HOME"]), {"compile": compile_kernel})
