"""`bundle export`: the model as one C99 file or one Python module without dependencies, for devices at the edge.

Both give a CompiledModel's margin and score bit for bit: floats are written in hexadecimal, additions keep
their order, and the sigmoid is the package's own, made of operations that IEEE 754 defines. C must be compiled without
contracting a x b + c into one rounding (`-ffp-contract=off`, which the file's header says) and without -ffast-math.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.model import link_function
from scorer.model.tree_table import IDENTITY


@dataclass(frozen=True)
class _Parts:
    """What both languages share."""

    bundle: Bundle

    def __post_init__(self) -> None:
        if self.bundle.policy.flag.cost is not None:
            raise UsageError(
                f"{self.bundle.id} flags by cost: its decision needs each amount in the feature set's currency, which "
                "exported code does not know; export a bundle whose policy has flag: {score: …} or {share: …}"
            )

        if self.bundle.policy.segments:
            raise UsageError(
                f"{self.bundle.id} has segments with thresholds of their own, and exported code does not know their "
                "fields; export a bundle whose policy has no segments"
            )

    def number(self, value: float, suffix: str = "") -> str:
        """An exact literal of C."""
        if np.isposinf(value):
            return "HUGE_VAL" if not suffix else "HUGE_VALF"
        if np.isneginf(value):
            return "-HUGE_VAL" if not suffix else "-HUGE_VALF"
        return float(value).hex() + suffix

    @property
    def intro(self) -> list[str]:
        manifest = self.bundle.manifest
        return [
            f"Bundle {self.bundle.id}: {self.bundle.model.tree_count} trees.",
            f"Input: {self.bundle.model.feature_count} features, float32, NaN is missing.",
            f"Feature set {manifest.feature_fingerprint[:12]}: {', '.join(manifest.feature_names)}",
            f"Flag where margin >= {float(self.bundle.threshold_margin).hex()},",
            f"which is score >= {manifest.threshold_score:.9g}.",
        ]


def to_c(bundle: Bundle) -> str:
    """One C99 file: fraud_margin(x), fraud_score(margin), fraud_flag(x), x an array of FRAUD_FEATURES floats."""
    parts, table = _Parts(bundle), bundle.model.table
    real, suffix = ("double", "") if table.wide else ("float", "f")
    inner = table.feature >= 0
    wide = bool(table.feature.max(initial=0) > 0x7FFF)
    nodes = []
    for node in range(table.node_count):
        if inner[node]:
            code = int(table.feature[node]) * 2 + (0 if table.default_left[node] else 1)
            nodes.append(f"{{{parts.number(float(table.threshold[node]), 'f')}, {int(table.left[node])}, {code}}}")
        else:
            nodes.append(f"{{0, -1, {node}}}")
    leaf_place = np.cumsum(~inner) - 1
    nodes = [text if inner[i] else f"{{0, -1, {int(leaf_place[i])}}}" for i, text in enumerate(nodes)]
    leaves = [parts.number(float(value), suffix) for value in table.value[~inner]]
    # A leaf's place may need more bits than a feature's number.
    code_kind = "uint32_t" if wide or len(leaves) > 0xFFFF else "uint16_t"
    lines = [
        "/*",
        *(f" * {line}" for line in parts.intro),
        " * Compile with -std=c99 -ffp-contract=off; never with -ffast-math.",
        " */",
    ]
    lines += [
        "#include <math.h>", "#include <stdint.h>", "",
        f"#define FRAUD_FEATURES {table.feature_count}", f"#define FRAUD_TREES {table.tree_count}", "",
        "#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD > 0", "#define FRAUD_ROUNDED volatile", "#else",
        "#define FRAUD_ROUNDED", "#endif", "",
        f"struct fraud_node {{ float threshold; int32_t left; {code_kind} code; }};",
        f"static const struct fraud_node fraud_nodes[{max(1, len(nodes))}] = {{", *_rows(nodes or ["{0, -1, 0}"]), "};",
        f"static const {real} fraud_leaves[{max(1, len(leaves))}] = {{", *_rows(leaves or ["0"]), "};",
        f"static const int32_t fraud_roots[{max(1, table.tree_count)}] = {{",
        *_rows([str(int(root)) for root in table.root] or ["0"]), "};", "",
        "float fraud_margin(const float *x) {",
        f"    FRAUD_ROUNDED {real} sum = {parts.number(float(table.base_margin), suffix)};",
        "    for (int tree = 0; tree < FRAUD_TREES; tree++) {",
        "        const struct fraud_node *node = &fraud_nodes[fraud_roots[tree]];",
        "        while (node->left >= 0) {",
        "            float value = x[node->code >> 1];",
        "            int right = value != value ? node->code & 1 : !(value < node->threshold);",
        "            node = &fraud_nodes[node->left + right];",
        "        }",
        "        sum += fraud_leaves[node->code];",
        "    }",
    ]  # fmt: skip
    if not table.finished:
        lines += [
            f"    sum = sum / ({real}){parts.number(table.divisor)};",
            f"    sum = ({real})((double)sum + {parts.number(table.offset)});",
        ]
    lines += ["    return (float)sum;", "}", ""]
    if bundle.manifest.calibration.kind != "isotonic" and bundle.model.link != IDENTITY:
        lines += _C_SIGMOID
    lines += [*_c_score(bundle, parts), ""]
    threshold = parts.number(float(bundle.threshold_margin), "f")
    lines += [f"int fraud_flag(const float *x) {{ return fraud_margin(x) >= {threshold}; }}"]
    return "\n".join(lines) + "\n"


def _rows(items: list[str]) -> list[str]:
    return ["    " + ", ".join(items[at : at + 8]) + "," for at in range(0, len(items), 8)]


_TERMS = [getattr(link_function, f"_C{k}") for k in range(13, 1, -1)]
_C_SIGMOID = [
    "static double fraud_exp(double x) {",
    f"    double k = floor(x * {link_function._INVERSE_LN2.hex()} + 0.5);",
    f"    double high = x - k * {link_function._LN2_HIGH.hex()}, low = k * {link_function._LN2_LOW.hex()};",
    "    double r = high - low, lost = (high - r) - low;",
    f"    double q = {_TERMS[0].hex()};",
    *[f"    q = q * r + {term.hex()};" for term in _TERMS[1:]],
    "    return ldexp(1.0 + (r + (r * r * q + lost)), (int)k);",
    "}",
    "static double fraud_sigmoid(float margin) {",
    "    double x = margin;",
    "    if (x != x) return x;",
    "    if (x < -746.0) return 0.0;",
    "    if (x < -700.0) return fraud_exp(x);",
    "    if (x > 746.0) return 1.0;",
    "    return 1.0 / (1.0 + fraud_exp(-x));",
    "}",
]


def _c_score(bundle: Bundle, parts: _Parts) -> list[str]:
    curve = bundle.manifest.calibration
    if curve.kind == "platt":
        return [
            "double fraud_score(float margin) {",
            f"    double line = (double)margin * {parts.number(curve.slope or 0.0)};",
            f"    line = line + {parts.number(curve.intercept or 0.0)};",
            "    line = line < -1e6 ? -1e6 : line > 1e6 ? 1e6 : line;",
            "    return fraud_sigmoid((float)line);",
            "}",
        ]
    if curve.kind == "isotonic":
        x, y = curve.margins or (), curve.scores or ()
        return [
            f"static const double fraud_x[{len(x)}] = {{", *_rows([parts.number(v) for v in x]), "};",
            f"static const double fraud_y[{len(y)}] = {{", *_rows([parts.number(v) for v in y]), "};",
            "double fraud_score(float margin) {",
            "    double m = margin, share, score;",
            "    int at = 0;",
            "    if (m != m) return m;",
            f"    while (at < {len(x) - 2} && fraud_x[at + 1] <= m) at++;",
            f"    m = m < fraud_x[0] ? fraud_x[0] : m > fraud_x[{len(x) - 1}] ? fraud_x[{len(x) - 1}] : m;",
            "    share = (m - fraud_x[at]) / (fraud_x[at + 1] - fraud_x[at]);",
            "    score = fraud_y[at] + (fraud_y[at + 1] - fraud_y[at]) * share;",
            "    return score < fraud_y[at] ? fraud_y[at] : score > fraud_y[at + 1] ? fraud_y[at + 1] : score;",
            "}",
        ]  # fmt: skip
    if bundle.model.link == IDENTITY:
        return ["double fraud_score(float margin) { return margin < 0 ? 0.0 : margin > 1 ? 1.0 : (double)margin; }"]
    return ["double fraud_score(float margin) { return fraud_sigmoid(margin); }"]


def to_python(bundle: Bundle) -> str:
    """One Python module: margin(x), score(margin), flag(x), x a sequence of FEATURES numbers; standard library only."""
    table = bundle.model.table
    inner = table.feature >= 0
    lines = [f'"""{parts_line}' if not k else parts_line for k, parts_line in enumerate(_Parts(bundle).intro)]
    lines += ['"""', "import math", "import struct", "", f"FEATURES = {table.feature_count}"]
    arrays = {
        "_FEATURE": np.where(inner, table.feature, -1).tolist(),
        "_LEFT": table.left.tolist(),
        "_MISSING_RIGHT": (table.default_left == 0).astype(int).tolist(),
        "_ROOT": table.root.tolist(),
    }
    for name, values in arrays.items():
        lines += [f"{name} = (", *_rows([str(value) for value in values]), ")"]
    for name, floats in (("_THRESHOLD", np.where(inner, table.threshold, 0)), ("_VALUE", table.value)):
        lines += [f"{name} = tuple(float.fromhex(h) for h in (", *_rows([f'"{float(v).hex()}"' for v in floats]), "))"]
    rounded = "_f32({})" if not table.wide else "{}"
    lines += [
        "_FLOAT = struct.Struct('<f')", "", "",
        "def _f32(value):",
        "    if value != value or value in (math.inf, -math.inf):",
        "        return value",
        "    try:",
        "        return _FLOAT.unpack(_FLOAT.pack(value))[0]",
        "    except OverflowError:  # rounds to infinity",
        "        return math.copysign(math.inf, value)", "", "",
        "def margin(x):",
        '    """The margin; values are taken as float32, NaN is missing."""',
        f"    total = float.fromhex('{float(table.base_margin).hex()}')",
        "    for node in _ROOT:",
        "        while _FEATURE[node] >= 0:",
        "            value = _f32(x[_FEATURE[node]])",
        "            right = _MISSING_RIGHT[node] if value != value else int(not value < _THRESHOLD[node])",
        "            node = _LEFT[node] + right",
        # The sum of two float32 in double, rounded to float32, is their float32 sum: 53 bits are more than 2 x 24 + 2.
        f"        total = {rounded.format('total + _VALUE[node]')}",
    ]  # fmt: skip
    if not table.finished:
        lines += [
            f"    total = {rounded.format(f'total / float.fromhex({float(table.divisor).hex()!r})')}",
            f"    total = {rounded.format(f'total + float.fromhex({float(table.offset).hex()!r})')}",
        ]
    lines += ["    return _f32(total)", "", "", *_PY_SIGMOID, "", "", *_py_score(bundle), "", ""]
    lines += [
        "def flag(x):",
        '    """Whether the payment is flagged by its score."""',
        f"    return margin(x) >= float.fromhex('{float(bundle.threshold_margin).hex()}')",
    ]
    return "\n".join(lines) + "\n"


_PY_SIGMOID = [
    "def _exp(x):",
    f"    k = float(math.floor(x * float.fromhex('{link_function._INVERSE_LN2.hex()}') + 0.5))",
    f"    high = x - k * float.fromhex('{link_function._LN2_HIGH.hex()}')",
    f"    low = k * float.fromhex('{link_function._LN2_LOW.hex()}')",
    "    r = high - low",
    "    lost = (high - r) - low",
    f"    q = float.fromhex('{_TERMS[0].hex()}')",
    *[f"    q = q * r + float.fromhex('{term.hex()}')" for term in _TERMS[1:]],
    "    return math.ldexp(1.0 + (r + (r * r * q + lost)), int(k))",
    "",
    "",
    "def _sigmoid(x):",
    "    if x != x:",
    "        return x",
    "    if x < -746.0:",
    "        return 0.0",
    "    if x < -700.0:",
    "        return _exp(x)",
    "    if x > 746.0:",
    "        return 1.0",
    "    return 1.0 / (1.0 + _exp(-x))",
]


def _py_score(bundle: Bundle) -> list[str]:
    curve = bundle.manifest.calibration
    head = ["def score(margin):", '    """The probability of fraud."""']
    if curve.kind == "platt":
        return [
            *head,
            f"    line = margin * float.fromhex('{float(curve.slope or 0).hex()}')",
            f"    line = line + float.fromhex('{float(curve.intercept or 0).hex()}')",
            "    if line != line:",
            "        return line",
            "    return _sigmoid(_f32(min(1e6, max(-1e6, line))))",
        ]
    if curve.kind == "isotonic":
        x, y = curve.margins or (), curve.scores or ()
        return [
            f"_X = {x!r}",
            f"_Y = {y!r}",
            "",
            "",
            *head,
            "    if margin != margin:",
            "        return margin",
            "    at = 0",
            "    while at < len(_X) - 2 and _X[at + 1] <= margin:",
            "        at += 1",
            "    m = min(_X[-1], max(_X[0], margin))",
            "    share = (m - _X[at]) / (_X[at + 1] - _X[at])",
            "    return min(_Y[at + 1], max(_Y[at], _Y[at] + (_Y[at + 1] - _Y[at]) * share))",
        ]
    if bundle.model.link == IDENTITY:
        return [*head, "    return margin if margin != margin else min(1.0, max(0.0, margin))"]
    return [*head, "    return _sigmoid(margin)"]
