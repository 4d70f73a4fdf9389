"""Expressions over config values, such as ``lora.rank * optim.lr < 0.1``, evaluated without ``eval``.

Known are numbers, text, ``true``/``false``/``null``, config paths, arithmetic, comparison (chained too), ``in``,
``and``, ``or``, ``not``, ``a if b else c``, lists, ``{key: value}[key]``, and ``min max abs log log2 log10 sqrt``.
Nothing else is: no attribute, call or name reaches Python.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.errors import ConfigError

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sqrt": math.sqrt,
}
_CONSTANTS = {"true": True, "false": False, "null": None}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # as floats it overflows instead of filling the memory
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: as the user wrote it.
        tree: Python's syntax tree, checked.
        paths: config paths that it reads, in order of appearance.
    """

    text: str
    tree: ast.expr
    paths: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> "Expression":
        """Read an expression.

        Args:
            text: as the user wrote it.
            where: what to call it in messages.

        Raises:
            ConfigError: for anything that is not known here.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > _MOST_CHARACTERS:
            raise ConfigError(f"{where}: expected an expression as text, such as 'lora.rank <= 16', not {text!r}.")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError) as error:
            said = getattr(error, "msg", str(error))
            raise ConfigError(
                f"{where}: '{text}' is not an expression ({said}). An example: 'lora.rank <= 16'"
            ) from None
        paths: dict[str, None] = {}
        _check(tree, text, where, paths)
        return cls(text, tree, tuple(paths))

    def value(self, values: Mapping[str, Any]) -> Any:
        """The expression's value.

        Args:
            values: config path → value, for all of ``paths``.

        Raises:
            ConfigError: where the arithmetic fails, such as a division by zero.
        """
        try:
            return _value(self.tree, values)
        except (ArithmeticError, ValueError, TypeError, LookupError) as error:
            inputs = ", ".join(f"{path}={values.get(path)!r}" for path in self.paths)
            raise ConfigError(f"'{self.text}' has no value at {inputs}: {type(error).__name__}: {error}") from None


def _check(node: ast.AST, text: str, where: str, paths: dict[str, None]) -> None:
    match node:
        case ast.Name() | ast.Attribute():
            path = _path(node)
            if path is None:
                raise _unknown(node, text, where)
            if path not in _CONSTANTS:
                paths[path] = None
        case ast.Constant(value=bool() | int() | float() | str()):
            return
        case ast.BoolOp() | ast.IfExp() | ast.List() | ast.Tuple() | ast.Subscript():
            _check_all(node, text, where, paths)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, text, where, paths)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, text, where, paths)
            _check(right, text, where, paths)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            for part in (left, *others):
                _check(part, text, where, paths)
        case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
            for entry in (*keys, *values):
                assert entry is not None
                _check(entry, text, where, paths)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            for argument in arguments:
                _check(argument, text, where, paths)
        case _:
            raise _unknown(node, text, where)


def _check_all(node: ast.AST, text: str, where: str, paths: dict[str, None]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(child, text, where, paths)


def _unknown(node: ast.AST, text: str, where: str) -> ConfigError:
    part = ast.get_source_segment(text.strip(), node) or type(node).__name__
    functions = ", ".join(FUNCTIONS)
    return ConfigError(
        f"{where}: '{part}' cannot stand in '{text}'. Known are config paths, numbers, text, + - * / // % **,"
        f" comparisons, in, and, or, not, if-else, lists, {{key: value}}[key], and {functions}."
    )


def _path(node: ast.AST) -> str | None:
    """The dotted name that a chain of attributes spells."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            path = _path(node)
            assert path is not None
            return _CONSTANTS[path] if path in _CONSTANTS else values[path]
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, values) for part in parts)
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, values)
            return not value if isinstance(op, ast.Not) else -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_number(_value(left, values)), _number(_value(right, values)))
        case ast.Compare(left=left, ops=ops, comparators=others):
            parts = [_value(part, values) for part in (left, *others)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, parts, parts[1:], strict=False))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, values) else orelse, values)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, values) for part in parts]
        case ast.Dict(keys=keys, values=entries):
            return {_value(k, values): _value(v, values) for k, v in zip(keys, entries, strict=True) if k is not None}
        case ast.Subscript(value=table, slice=key):
            return _value(table, values)[_value(key, values)]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
        case _:
            raise TypeError(ast.dump(node))  # _check let nothing else through


def _number(value: Any) -> Any:
    """Arithmetic is for numbers: text times a number would fill the memory."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
