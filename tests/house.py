"""Measure the package: the size of files and functions, and the share of validation.

Run `python tests/house.py` to print the figures that `test_house.py` holds to limits.
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parents[1] / "msdlosses"
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@dataclass(frozen=True)
class Figures:
    """Lines of a package. Code has neither blank lines, nor comments, nor docstrings."""

    median_file: float
    p90_function: int
    """Lines of code that 90 % of the functions do not exceed."""
    code: int
    validation: int
    """Lines of code that check arguments or raise errors."""

    @property
    def validation_share(self) -> float:
        return self.validation / self.code


def measure(package: Path) -> Figures:
    files, functions, code, validation = [], [], 0, 0
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        lines = code_lines(text, tree)
        files.append(len(text.splitlines()))
        functions += [len(lines & span(node)) for node in ast.walk(tree) if is_function(node)]
        code += len(lines)
        validation += len(lines & validation_lines(tree))
    functions.sort()
    return Figures(median(files), functions[int(0.9 * len(functions))], code, validation)


def code_lines(text: str, tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    docstrings = (s for node in ast.walk(tree) if isinstance(node, DOCUMENTED) for s in node.body)
    return lines.difference(*(span(s) for s in docstrings if is_string(s)))


def validation_lines(tree: ast.AST) -> set[int]:
    """Functions named `check...`, calls of them, raises, and conditions that only raise."""
    return set().union(*(span(node) for node in ast.walk(tree) if validates(node)))


def validates(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return is_check(node.name)
    if isinstance(node, ast.If):
        return not node.orelse and isinstance(node.body[-1], ast.Raise)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return is_check(getattr(function, "attr", getattr(function, "id", "")))
    return isinstance(node, ast.Raise)


def is_check(name: str) -> bool:
    return name.lstrip("_").startswith("check")


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


def is_string(node: ast.AST) -> bool:
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str)


def span(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))  # type: ignore[attr-defined]


if __name__ == "__main__":
    figures = measure(PACKAGE)
    print(f"median file           {figures.median_file:g} lines")
    print(f"p90 function          {figures.p90_function} lines of code")
    print(f"validation            {figures.validation_share:.1%} of {figures.code} lines of code")
