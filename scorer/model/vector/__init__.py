"""The byte-lane evaluator: exact ranks, padded trees, and kernels written as LLVM IR for the host's own CPU."""
