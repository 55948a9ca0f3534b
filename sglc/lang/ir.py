"""Pieces under the names by which programs of the field import them (the compiler's IR is `sglc.ir`)."""

from __future__ import annotations

from sglc.lang.pieces import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from sglc.lang.pieces import Gen as SglGen
from sglc.lang.pieces import Image as SglImage
from sglc.lang.pieces import Piece as SglExpr
from sglc.lang.pieces import Row as SglExprList
from sglc.lang.pieces import Select as SglSelect
from sglc.lang.program import Program as SglFunction

__all__ = [
    "REGEX_BOOL",
    "REGEX_FLOAT",
    "REGEX_INT",
    "REGEX_STR",
    "SglExpr",
    "SglExprList",
    "SglFunction",
    "SglGen",
    "SglImage",
    "SglSelect",
]
