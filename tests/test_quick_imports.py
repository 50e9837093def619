"""The search for garbage cycles rests inside and comes back behind the last block; scipy.optimize comes when needed."""

import gc
import subprocess
import sys

import pytest

from uqchat.quick_imports import quick_imports


def test_it_is_off_inside_and_on_behind_the_outermost_block() -> None:
    assert gc.isenabled()
    with quick_imports():
        with quick_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_last_block_to_end_turns_it_on_in_whatever_order_they_end() -> None:
    first, second = quick_imports(), quick_imports()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_it_comes_back_after_an_error() -> None:
    with pytest.raises(ValueError), quick_imports():
        raise ValueError
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_one_function_of_scipy_comes_in_with_its_first_call_and_all_others_at_once() -> None:
    code = """
import sys
from uqchat.quick_imports import quick_imports

with quick_imports():
    from scipy.optimize import linear_sum_assignment
    assert "scipy" not in sys.modules
    assert not hasattr(sys.modules["scipy.optimize"], "__path__")
assert "scipy.optimize" not in sys.modules
rows, columns = linear_sum_assignment([[4, 1], [2, 8]])
assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])

for name in [name for name in sys.modules if name.startswith("scipy.optimize")]:
    del sys.modules[name]
with quick_imports():
    from scipy.optimize import minimize
    import scipy.optimize
    assert scipy.optimize.minimize is minimize and minimize.__module__.startswith("scipy.optimize")
    with quick_imports():  # what has come in stays
        assert sys.modules["scipy.optimize"] is scipy.optimize
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gradio_writes_no_stubs_and_has_its_components() -> None:
    code = """
import sys
from uqchat.quick_imports import quick_imports

before = list(sys.meta_path)
with quick_imports(), quick_imports():
    import gradio
assert sys.meta_path == before
from gradio import component_meta
assert component_meta.create_or_modify_pyi.__module__ == "uqchat.quick_imports"
with gradio.Blocks() as page:
    gradio.Textbox().submit(lambda text: text)
assert len(page.fns) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
