"""The byte-lane evaluator: exact ranks, padded trees, and kernels built as LLVM IR for the host's own CPU.

It may import `scorer.model.tree_table`, numpy, numba and llvmlite; only `jit_compiler` reads and writes files, those
of the kernel cache.
"""
