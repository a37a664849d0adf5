"""Budgets and bans of the house style, read off the syntax trees."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = sorted((ROOT / 'foundationpose_trt').rglob('*.py'))
FILES = [*OWN, *sorted((ROOT / 'launch').glob('*.py')), *sorted((ROOT / 'test').glob('*.py'))]
LONGEST_FUNCTION, MEDIAN_FUNCTION, MOST_PARAMETERS, LONGEST_FILE = 60, 10, 6, 400
DRAWERS = {'utils', 'util', 'helpers', 'common', 'misc', 'tools', 'types'}
BANNED_CALLS = {'empty_cache', 'set_default_tensor_type', 'set_default_device', 'breakpoint'}
ALLOWED = {  # the cache's one flush, at the end of a purge or removal
    'foundationpose_trt/runtime/graph_cache.py': ['calls torch.cuda.empty_cache'],
}
BANNED_MODULES = {'pickle', 'cPickle', 'dill', 'shelve'}

Function = ast.FunctionDef | ast.AsyncFunctionDef
function_types = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, function_types)]


def length(function: Function) -> int:
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> list[ast.arg]:
    a = function.args
    starred = [arg for arg in (a.vararg, a.kwarg) if arg]
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *starred]
    return [arg for arg in named if arg.arg not in ('self', 'cls')]


def on_device(node: Function | ast.ClassDef) -> bool:
    """Warp code: called by launches, typed and bounded by Warp's own rules."""
    return any(ast.unparse(decorator).startswith('wp.') for decorator in node.decorator_list)


def budget_faults(tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        if length(function) > LONGEST_FUNCTION:
            yield f'{function.name} has {length(function)} lines'
        if len(parameters(function)) > MOST_PARAMETERS and not on_device(function):
            yield f'{function.name} has {len(parameters(function))} parameters'


def call_faults(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called.split('.')[-1] in BANNED_CALLS:
        yield f'calls {called}'
    if called == 'torch.load' and not any(
        word.arg == 'weights_only' and ast.unparse(word.value) == 'True' for word in node.keywords
    ):
        yield 'torch.load without weights_only=True'


def handler_faults(node: ast.ExceptHandler) -> Iterator[str]:
    if node.type is None:
        yield 'bare except'
        return
    caught = {child.id for child in ast.walk(node.type) if isinstance(child, ast.Name)}
    raises = any(isinstance(child, ast.Raise) for child in ast.walk(node))
    if caught & {'Exception', 'BaseException'} and not raises:
        yield 'except Exception that does not raise'


def import_faults(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
    yield from (f'imports {name}' for name in names if name in BANNED_MODULES)


def ban_faults(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from call_faults(node)
        elif isinstance(node, ast.ExceptHandler):
            yield from handler_faults(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from import_faults(node)


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without docstring; forward() is torch's contract."""
    if not ast.get_docstring(tree) and tree.body:
        yield 'module'
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, (*function_types, ast.ClassDef)):
                continue
            public = not node.name.startswith('_') and node.name != 'forward'
            public = public and not on_device(node)
            if public and not ast.get_docstring(node):
                yield node.name


def unannotated(tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        if not all(arg.annotation for arg in parameters(function)):
            yield f'{function.name}: parameters'
        if function.returns is None and not on_device(function):
            yield f'{function.name}: result'


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', FILES, ids=relative)
def test_file_keeps_the_bans(path):
    text = path.read_text(encoding='utf-8')
    assert list(ban_faults(ast.parse(text))) == ALLOWED.get(relative(path), [])
    assert path.stem not in DRAWERS, 'the name says nothing of what is inside'
    assert text.count('\n') < LONGEST_FILE
    assert not [word for word in ('TODO', 'FIXME', 'XXX') if f'# {word}' in text]


@pytest.mark.parametrize('path', OWN, ids=relative)
def test_file_keeps_the_budgets(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    assert not list(budget_faults(tree))
    assert not list(undocumented(tree)), 'public names without docstring'
    assert not list(unannotated(tree)), 'functions without type hints'


def test_functions_are_short_in_the_median():
    sizes = [length(item) for path in OWN for item in functions(ast.parse(path.read_text()))]
    assert statistics.median(sizes) < MEDIAN_FUNCTION


@pytest.mark.parametrize(
    'source',
    [
        'try:\n    f()\nexcept:\n    raise',
        'try:\n    f()\nexcept (ValueError, Exception):\n    pass',
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        'import pickle',
        'from pickle import loads',
        'torch.cuda.empty_cache()',
    ],
)
def test_a_seeded_ban_is_found(source):
    assert len(list(ban_faults(ast.parse(source)))) == 1


def test_seeded_budget_faults_are_found():
    long = 'def long() -> None:\n' + '    x = 1\n' * LONGEST_FUNCTION
    wide = 'def wide(self, a, b, c, d, e, f, *, g): pass'
    assert list(budget_faults(ast.parse(long))) == ['long has 61 lines']
    assert list(budget_faults(ast.parse(wide))) == ['wide has 7 parameters']
    assert list(undocumented(ast.parse('"""M."""\ndef f(): pass\ndef _g(): pass'))) == ['f']
    assert list(unannotated(ast.parse('def f(a, *b: int) -> None: pass'))) == ['f: parameters']
