"""Mistakes put into functions of the package while a test runs, wherever they were imported to."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path
from types import CodeType

import numpy as np

from tinymoe.sparse import CSR


def exchange(monkeypatch, module, source):
    """Give the functions and methods of a module the code that they would have if this were its source.

    `source` may be a syntax tree. The functions themselves stay, so that whoever imported one calls the changed one.
    """

    def replace(owner, code):
        for part in (c for c in code.co_consts if isinstance(c, CodeType)):
            found = vars(owner).get(part.co_name)
            if isinstance(found, type):
                replace(found, part)
            elif hasattr(found, "__code__") and found.__code__.co_filename == part.co_filename:
                monkeypatch.setattr(found, "__code__", part)

    replace(module, compile(source, module.__file__, "exec"))


def plant(monkeypatch, module, right, wrong):
    """Exchange one piece of text in a module."""
    source = Path(inspect.getfile(module)).read_text(encoding="utf-8")
    assert source.count(right) == 1, "the line has changed; change the bug too"
    exchange(monkeypatch, module, source.replace(right, wrong))


def spoil(monkeypatch, backward):
    """Have one backward, as `written` found it, return gradients that are off by a hundredth, and by a hundredth of 1."""
    module = importlib.import_module("tinymoe." + backward.file.removesuffix(".py").replace("/", "."))
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        and min(n.lineno for n in (node, *getattr(node, "decorator_list", []))) == backward.line
        and getattr(node, "name", "lambda") == backward.name.rpartition(".")[2]
    )

    def spoiled(value):
        return ast.Call(ast.Name("spoiled_gradient", ast.Load()), [value], [])

    if isinstance(function, ast.Lambda):
        function.body = spoiled(function.body)
    else:
        for node in ast.walk(function):
            if isinstance(node, ast.Return):
                node.value = spoiled(node.value)
    monkeypatch.setattr(module, "spoiled_gradient", off, raising=False)
    exchange(monkeypatch, module, ast.fix_missing_locations(tree))


def off(gradient):
    """Every number in it changed."""
    if isinstance(gradient, np.ndarray | np.inexact | float):
        return gradient * 1.01 + 0.01
    if isinstance(gradient, CSR):
        return gradient.with_data(off(gradient.data))
    if isinstance(gradient, list | tuple):
        return type(gradient)(map(off, gradient))
    if isinstance(gradient, dict):
        return {name: off(part) for name, part in gradient.items()}
    if dataclasses.is_dataclass(gradient) and not isinstance(gradient, type):
        parts = {field.name: off(getattr(gradient, field.name)) for field in dataclasses.fields(gradient)}
        return dataclasses.replace(gradient, **parts)
    return gradient
