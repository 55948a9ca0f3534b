"""Context-free grammars as constraints: EBNF with `::=` (as llama.cpp and xgrammar read it) and Lark's syntax."""
