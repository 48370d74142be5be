"""How a kernel that only kernels call is compiled: typed and lowered, but not optimised and not made machine code.

Numba compiles each kernel to the end, and links the code of what it calls into it, optimises all of that, and writes
machine code for all of that. The innermost of nine kernels that call each other was so optimised and written nine
times, and run as part of the outermost alone. A sixth of a first start's CPU went there. LLVM goes through a module
from the innermost function outwards by itself, so the outermost one, which Python calls, loses nothing.
"""

# mypy: disable-error-code="misc, no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

# What this builds on, inside numba: a release without it compiles callees to the end, as numba does by itself.
_METHODS = ("_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals", "enable_object_caching")
AVAILABLE = all(hasattr(JITCodeLibrary, name) for name in _METHODS) and hasattr(Compiler, "_compile_bytecode")
# How names begin of the constants of a kernel, which numba sets when the kernel is loaded.
_ENVIRONMENT = "_ZN08NumbaEnv"


class _CalleeLibrary(JITCodeLibrary):
    """The code of a kernel for others to link. Only what numba sets at run time exists as machine code."""

    def _optimize_final_module(self) -> None: ...

    def _finalize_final_module(self) -> None:
        whole: Any = self._final_module
        names = [item.name for item in whole.global_variables if item.name.startswith(_ENVIRONMENT)]
        if not names:  # another numba names them otherwise, and would not find them
            super()._finalize_final_module()
            return
        self._finalize_dynamic_globals()  # a kernel that has some is not cached
        text = [f'target triple = "{whole.triple}"', f'target datalayout = "{whole.data_layout}"']
        text += [f'@"{name}" = common global ptr null' for name in names]
        self._final_module = binding.parse_assembly("\n".join(text))
        self._final_module.name = whole.name
        super()._finalize_final_module()
        self._final_module = whole


class CalleeCompiler(Compiler):
    """Numba's compiler, with a library of the kind above. For kernels without wrappers."""

    def _compile_bytecode(self) -> Any:
        if self.state.library is None:
            self.state.library = _CalleeLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
        return super()._compile_bytecode()
