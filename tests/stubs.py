"""The type stub of ``_ck``, from its signatures: ``python tests/stubs.py`` writes ``python/ckernels/_ck.pyi``."""

import inspect
import textwrap

import declared
from ckernels import _ck
from native import ROOT

PATH = ROOT / "python/ckernels/_ck.pyi"
HEAD = '''\
"""Types of the C extension; written by tests/stubs.py from its signatures."""
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

from numpy.typing import NDArray

_In: TypeAlias = Any  # a NumPy array, or what lends its memory by __dlpack__
_Out: TypeAlias = Any  # the same, written; None or True where the docstring says so
_Array: TypeAlias = Any  # a new NumPy array, or the output that was given
'''
RETURNS = {
    "isas": "list[str]",
    "isa": "str",
    "use_isa": "str",
    "get_num_threads": "int",
    "memory_stats": "dict[str, int]",
    "empty": "NDArray[Any]",
    "build_info": "dict[str, Any]",
    "blas_info": "dict[str, str | None]",
    "get_matmul_backend": "str",
    "get_matmul_precision": "str",
}
NUMBERS = {"float": "SupportsFloat", "double": "SupportsFloat", "int": "SupportsIndex", "bool": "object"}


def op_stub(op):
    """Return the stub of one op."""
    given, outputs = [], 0
    for p in declared.parameters(op):
        kind = NUMBERS[p.kind] if p.shape is None else "_Out" if p.written else "_In | None" if p.optional else "_In"
        given.append(f"{p.name}: {kind}")
        outputs += p.written
    result = "_Array" if outputs == 1 else f"tuple[{', '.join(['_Array'] * outputs) if outputs < 8 else '_Array, ...'}]"
    return (
        f"def {op}(\n    {textwrap.fill(', '.join([*given, '/']), 110, subsequent_indent='    ')}\n) -> {result}: ..."
    )


def stub():
    """Return the whole file."""
    lines = [HEAD]
    for name, function in sorted(vars(_ck).items()):
        if name in declared.OPS:
            lines.append(op_stub(name))
        elif inspect.isbuiltin(function):
            given = [
                f"{p.name}: Any" + ("" if p.default is p.empty else " = ...")
                for p in inspect.signature(function).parameters.values()
            ]
            lines.append(f"def {name}({', '.join([*given, '/'] if given else [])}) -> {RETURNS.get(name, 'None')}: ...")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(stub())
