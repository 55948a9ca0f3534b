"""Which local names of a function may still be read: two paths that agree on these go on in the same way.

One backward walk over the syntax tree; loops until nothing changes. Where the tree does not say (names in lambdas and
comprehensions, an assignment inside of an expression) a name counts as read.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

Names = frozenset[str]
_NONE: Names = frozenset()


class Liveness:
    """`after` by statement: what is live when it has ended. `head` by loop: what is live when a round begins, before
    the condition of a `while`, or with the targets of a `for` assigned."""

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.after: dict[ast.stmt, Names] = {}
        self.head: dict[ast.stmt, Names] = {}
        self._block(tree.body, _NONE, (_NONE, _NONE))

    def _block(self, body: Sequence[ast.stmt], out: Names, jumps: tuple[Names, Names]) -> Names:
        """What is live before the statements. `jumps`: what is live where `break` and `continue` lead."""
        for statement in reversed(body):
            self.after[statement] = out
            out = self._before(statement, out, jumps)
        return out

    def _before(self, node: ast.stmt, out: Names, jumps: tuple[Names, Names]) -> Names:
        if isinstance(node, ast.If):
            return (
                loads(node.test) | self._block(node.body, out, jumps) | self._block(node.orelse, out, jumps)
            )
        if isinstance(node, ast.With):
            inner = self._block(node.body, out, jumps)
            return (inner - _stores(*(i.optional_vars for i in node.items))) | loads(*node.items)
        if isinstance(node, ast.Match):
            found = loads(node.subject) | out
            for case in node.cases:
                inner = self._block(case.body, out, jumps) | loads(case.guard)
                found |= loads(case.pattern) | inner
            return found
        if isinstance(node, ast.While):
            return self._while(node, out, jumps)
        if isinstance(node, ast.For):
            return self._for(node, out, jumps)
        if isinstance(node, (ast.Return, ast.Raise)):
            return loads(node)
        if isinstance(node, ast.Break):
            return jumps[0]
        if isinstance(node, ast.Continue):
            return jumps[1]
        if isinstance(node, ast.Assign):
            return (out - _stores(*node.targets)) | loads(node)
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            return (out - _stores(node.target)) | loads(node)
        return out | loads(node)

    def _while(self, node: ast.While, out: Names, jumps: tuple[Names, Names]) -> Names:
        leave = self._block(node.orelse, out, jumps)
        head = loads(node.test) | leave
        while (more := head | self._block(node.body, head, (out, head))) != head:
            head = more
        self.head[node] = head
        return head

    def _for(self, node: ast.For, out: Names, jumps: tuple[Names, Names]) -> Names:
        following = self._block(node.orelse, out, jumps)
        targets = _stores(node.target)
        inside = self._block(node.body, following, (out, following))
        while (more := following | (inside - targets)) != following:
            following = more
            inside = self._block(node.body, following, (out, following))
        self.head[node] = inside
        return following | loads(node.iter) | loads(node.target)


def loads(*nodes: ast.AST | None) -> Names:
    """Names that are read somewhere in the nodes."""
    found: set[str] = set()
    for node in nodes:
        for part in ast.walk(node) if node is not None else ():
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                found.add(part.id)
            elif isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name):
                found.add(part.target.id)
    return frozenset(found)


def _stores(*targets: ast.expr | None) -> Names:
    """Names that are certainly assigned."""
    found: set[str] = set()
    for target in targets:
        if isinstance(target, ast.Name):
            found.add(target.id)
        elif isinstance(target, (ast.Tuple, ast.List)):
            found |= _stores(*target.elts)
        elif isinstance(target, ast.Starred):
            found |= _stores(target.value)
    return frozenset(found)
