"""The faults: each is one small change of a module's syntax tree. Pure; it does not know how they are tried."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Change", "changes"]

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_TYPES_ONLY = ("annotation", "returns", "decorator_list", "type_params")


@dataclass(frozen=True, slots=True)
class Change:
    """One fault: what stands at one place of the tree, and what shall stand there."""

    place: str
    """The function or class it is in, by its dotted name; empty for the module itself."""
    function: tuple[str, int] | None
    """The outermost function's name and first line, if the change is in what it does when it is called."""
    lines: range
    text: str
    parent: Any
    field: str
    index: int | None
    new: ast.AST

    def make(self) -> None:
        """Change the tree that this was found in."""
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new


def changes(tree: ast.Module) -> list[Change]:
    """All changes of a module, in the order of the source; the same for the same source."""
    # What a function does that is called while the module is imported is over before a test begins.
    early = {node.func.id for node in _outside(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    found: list[Change] = []
    _walk(tree, "", None, early, found)
    return found


def _outside(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _outside(child)


def _walk(node: ast.AST, place: str, function: tuple[str, int] | None, early: set[str], found: list[Change]) -> None:
    for field, value in ast.iter_fields(node):
        if field in _TYPES_ONLY or (isinstance(node, ast.Raise) and field == "cause"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Assert) or _is_typing(child):
                continue
            inside = function
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body" and function is None:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                inside = None if place in early else (place, first)
            for new, text in _instead(child, node, field):
                lines = range(child.lineno, (_last_line(child) or child.lineno) + 1)  # type: ignore[attr-defined]
                ast.fix_missing_locations(ast.copy_location(new, child))
                found.append(Change(place, inside, lines, text, node, field, index, new))
            inner = place
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{place}.{child.name}".lstrip(".")
            _walk(child, inner, inside, early, found)


def _last_line(node: ast.AST) -> int | None:
    """The last line that is surely run with *node*: of a compound statement, that of its head."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        first: int = body[0].lineno
        return max(node.lineno, first - 1)  # type: ignore[attr-defined, no-any-return]
    end: int | None = getattr(node, "end_lineno", None)
    return end


def _instead(node: ast.AST, parent: ast.AST, field: str) -> Iterator[tuple[ast.AST, str]]:
    for new in _other_values(node):
        yield new, f"{_brief(node)} -> {_brief(new)}"
    if isinstance(node, ast.Tuple) and isinstance(parent, ast.Compare) and field == "comparators":
        for element in node.elts:
            rest = ast.Tuple([other for other in node.elts if other is not element], ast.Load())
            yield rest, f"{_brief(node)} -> {_brief(rest)}"
    if field in ("test", "ifs") and not isinstance(node, ast.Constant):
        for value in (True, False):
            if not (value and isinstance(parent, ast.While)):  # that only hangs
                yield ast.Constant(value), f"{type(parent).__name__.lower()} {_brief(node)}: always {value}"
    if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        what = "" if node.type is None else _brief(node.type)
        yield (
            ast.ExceptHandler(node.type, node.name, [_placed(ast.Raise(None, None), node)]),
            f"except {what}: only raise",
        )
    if _is_removable(node):
        yield ast.Pass(), f"{_brief(node)} removed"


def _other_values(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARED.get(type(op), ()):
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in _COMPARED.get(type(op), ()):
                    yield ast.Compare(node.left, [*ops[:index], other(), *ops[index + 1 :]], node.comparators)
        case ast.Dict(keys=keys, values=values) if len(keys) > 1:
            for index in range(len(keys)):
                yield ast.Dict([*keys[:index], *keys[index + 1 :]], [*values[:index], *values[index + 1 :]])
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield operand
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
            if value >= 1:
                yield ast.Constant(value - 1)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right) if _is_type(right):
            yield from (left, right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _COMPUTED and not _is_text(left, right):
            yield ast.BinOp(left, _COMPUTED[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _COMPUTED:
            yield ast.AugAssign(target, _COMPUTED[type(op)](), value)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _CALLED:
            yield ast.Call(ast.Name(_CALLED[name], ast.Load()), args, keywords)
        case ast.Call(func=ast.Attribute(attr="shield"), args=[inner]):
            yield inner


def _is_removable(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Return(value=ast.expr()):
            return False
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise() | ast.Return():
            return True
        case ast.Assign(targets=targets):
            return any(
                isinstance(part, ast.Attribute | ast.Subscript) for target in targets for part in ast.walk(target)
            )
        case ast.AnnAssign(target=ast.Attribute() | ast.Subscript(), value=ast.expr()):
            return True
    return False


def _is_typing(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="TypeVar")) | ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return True
    return False


def _is_type(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id[0].isupper() and not node.id.isupper()


def _is_text(*nodes: ast.expr) -> bool:
    return any(isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str) for node in nodes)


def _placed(new: Any, old: ast.AST) -> Any:
    return ast.copy_location(new, old)


def _brief(node: ast.AST) -> str:
    node = copy.copy(node)
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 90 else f"{text[:70]} … {text[-16:]}"
