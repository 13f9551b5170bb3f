"""Fingerprints of code: what a function names counts, wherever it is defined; installed packages count by version."""

import importlib
import logging
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import whence
from whence.core.fingerprints import fingerprint


def defined(code: str, name: str = "f", **space):
    """Return what `code` defines as `name`, as a module of the user would."""
    space = {"torch": torch, "nn": nn, "__name__": "user_module", **space}
    exec(compile(textwrap.dedent(code), "user_module.py", "exec"), space)
    return space[name]


PLAIN = "K = 1\ndef f(model, x, target): return x * K"
HELPER = "def g(x): return x * 1\ndef f(model, x, target): return g(x)"
SECOND = "def h(x): return x * 1\ndef g(x): return h(x)\ndef f(model, x, target): return g(x)"
INNER = "K = 1\ndef f(model, x, target): return [(lambda v: v * K)(v) for v in x]"
KIND = "class G:\n  def run(self, x): return x * 1\ndef f(model, x, target): return G().run(x)"
TABLE = "T = {'k': [1]}\ndef f(model, x, target): return x * T['k'][0]"
CLASS_ATTRIBUTE = "class G:\n  options = {'k': 1}\ndef f(model, x, target): return x * G.options['k']"


@pytest.mark.parametrize("code", [PLAIN, HELPER, SECOND, INNER, KIND, TABLE, CLASS_ATTRIBUTE])
def test_what_a_function_names_counts(code: str):
    assert fingerprint(defined(code)) == fingerprint(defined(code))
    assert fingerprint(defined(code)) != fingerprint(defined(code.replace("1", "2")))


def test_tensors_and_networks_among_globals_count():
    code = "def f(model, x, target): return net(x) + w"
    net = nn.Linear(2, 2)
    first = fingerprint(defined(code, net=net, w=torch.ones(2)))
    assert first != fingerprint(defined(code, net=net, w=torch.zeros(2)))
    net.bias.data += 1
    assert first != fingerprint(defined(code, net=net, w=torch.ones(2)))


def test_functions_of_modules_that_are_named_or_imported_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    named = "import helpers_of_test\ndef f(model, x, target): return helpers_of_test.scale(x)"
    inside = "def f(model, x, target):\n  from helpers_of_test import scale\n  return scale(x)"
    found = {}
    for factor in (1, 20):
        (tmp_path / "helpers_of_test.py").write_text(f"def scale(x): return x * {factor}\n")
        found[factor] = [fingerprint(defined(inside))]  # before the module is imported
        found[factor] += [fingerprint(defined(named))]
        monkeypatch.delitem(sys.modules, "helpers_of_test")
    assert found[1][0] != found[20][0]
    assert found[1][1] != found[20][1]


MODULE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0
    def forward(self, x): return self.core(x)
    def core(self, x): return x * 3
"""


def test_all_methods_of_a_module_count():
    assert fingerprint(defined(MODULE, "Net")()) == fingerprint(defined(MODULE, "Net")())
    assert fingerprint(defined(MODULE, "Net")()) != fingerprint(defined(MODULE.replace("* 3", "* 4"), "Net")())


def test_forward_hooks_count_and_their_numbers_do_not():
    def hooked(factor: float) -> nn.Module:
        layer = nn.Identity()
        layer.register_forward_hook(lambda module, args, out: out * factor)
        return layer

    assert fingerprint(hooked(1.0)) == fingerprint(hooked(1.0))  # two hooks have two ids
    assert len({fingerprint(nn.Identity()), fingerprint(hooked(1.0)), fingerprint(hooked(2.0))}) == 3


def test_loggers_and_installed_packages_do_not_change_it():
    code = "def f(model, x, target):\n  log.info('x')\n  return torch.relu(x)"
    first = fingerprint(defined(code, log=logging.getLogger("one")))
    logging.getLogger("one.more").setLevel("DEBUG")
    assert first == fingerprint(defined(code, log=logging.getLogger("one")))


def test_a_cache_is_not_read_after_a_helper_has_changed(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(4, 6)
    code = "def g(x): return x * 1\ndef f(model, x, target): return g(x)"

    def score(code: str):
        options = {"metrics": ["sparseness"], "cache_dir": tmp_path, "progress": False}
        return whence.evaluate(model, x, {"f": defined(code)}, **options).values["f"]["sparseness"]

    assert not torch.equal(score(code), score(code.replace("x * 1", "x ** 4")))


# objects by identity, and members of classes

CHOICES = {
    "choice of two functions": ("""
        def a(x): return x
        def b(x): return x + 1
        T = [a, b]
        U = a
        def f(x): return T, U(x)
    """, "U = a", "U = b"),
    "order of functions": ("""
        def a(x): return x
        def b(x): return x + 1
        T = [a, b]
        def f(x): return a, b, T
    """, "[a, b]", "[b, a]"),
    "cached method": ("""
        import functools
        class G:
          @functools.lru_cache
          def run(self, x): return x * 3
        def f(x): return G().run(x)
    """, "3", "4"),
    "cached property": ("""
        import functools
        class G:
          @functools.cached_property
          def k(self): return 3
        def f(x): return x * G().k
    """, "3", "4"),
    "nested class": ("""
        class G:
          class H:
            k = 3
        def f(x): return x * G.H.k
    """, "3", "4"),
    "array of a class": ("""
        import numpy as np
        class G:
          k = np.ones(3)
        def f(x): return x * G.k
    """, "ones", "zeros"),
    "module of a class": ("""
        class G:
          k = nn.ReLU()
        def f(x): return G.k(x)
    """, "ReLU", "Tanh"),
    "method of a list": ("""
        class L(list):
          def top(self): return 3
        T = L([1])
        def f(x): return x * T.top()
    """, "3", "4"),
    "method of a str": ("""
        class S(str):
          def top(self): return 3
        T = S('a')
        def f(x): return x * T.top()
    """, "3", "4"),
    "enumeration": ("""
        import enum
        class E(enum.IntEnum):
          A = 1
          def k(self): return 3
        T = E.A
        def f(x): return x * T.k()
    """, "3", "4"),
    "metaclass": ("""
        class M(type):
          def k(cls): return 3
        class G(metaclass=M): pass
        def f(x): return x * G.k()
    """, "3", "4"),
    "function attribute": ("""
        def f(x): return x * f.k
        f.k = 3
    """, "3", "4"),
    "private slot": ("""
        class G:
          __slots__ = '__k'
          def __init__(self): self.__k = 3
        T = G()
        def f(x): return T
    """, "= 3", "= 4"),
    "generator": ("""
        G = torch.Generator().manual_seed(3)
        def f(x): return x + torch.rand(1, generator=G)
    """, "3", "4"),
    "random": ("""
        import random
        G = random.Random(3)
        def f(x): return x + G.random()
    """, "3", "4"),
    "numpy generator": ("""
        import numpy as np
        G = np.random.default_rng(3)
        def f(x): return x + G.random()
    """, "3", "4"),
    "frame": ("""
        import pandas as pd
        G = pd.DataFrame({'a': [3.0]})
        def f(x): return x + G.a[0]
    """, "3.0", "4.0"),
    "deque": ("""
        import collections
        G = collections.deque([3])
        def f(x): return x + G[0]
    """, "3", "4"),
    "tensor method": ("""
        G = torch.full((2,), 3.0).dot
        def f(x): return G(x)
    """, "3.0", "4.0"),
    "named by a string": ("""
        def g(x): return x * 3
        def f(x): return globals()['g'](x)
    """, "3", "4"),
    "forest": ("""
        from sklearn.tree import DecisionTreeRegressor
        G = DecisionTreeRegressor(max_depth=1, random_state=0).fit([[0], [1], [2]], [3, 4, 9])
        def f(x): return G.predict(x)
    """, "[3, 4, 9]", "[3, 8, 9]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOICES)
def test_what_decides_an_output_counts(kind: str):
    code, old, new = CHOICES[kind]
    assert fingerprint(defined(code)) == fingerprint(defined(code))
    assert fingerprint(defined(code)) != fingerprint(defined(code.replace(old, new)))


def test_the_order_of_equal_layers_counts():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert fingerprint(nn.Sequential(a, b, a)) != fingerprint(nn.Sequential(a, b, b))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_weights_of_traced_and_quantised_models_count():
    def made(seed: int):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    for convert in (
        lambda net: torch.jit.trace(net.eval(), torch.ones(1, 4)),
        lambda net: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}),
    ):
        assert fingerprint(convert(made(0))) == fingerprint(convert(made(0)))
        assert fingerprint(convert(made(0))) != fingerprint(convert(made(1)))


def test_long_chains_and_special_tensors_have_a_fingerprint():
    chain = "".join(f"def f{i}(x): return f{i - 1}(x)\n" for i in range(1, 1500))
    code = f"def f0(x): return x * 3\n{chain}def f(x): return f1499(x)"
    assert fingerprint(defined(code)) != fingerprint(defined(code.replace("* 3", "* 4")))
    linked = None
    for _ in range(5000):
        linked = [linked]
    assert fingerprint(linked)
    assert fingerprint(
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    )


def test_sets_and_processes_do_not_change_it(tmp_path):
    program = (
        "import torch; from whence.core.fingerprints import fingerprint\n"
        "class G:\n  def __init__(self, k): self.k = k\n"
        "def g(x): return x\n"
        "T = {G(1), G(2), g}\n"
        "def f(x): return T\n"
        "print(fingerprint(f))"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(found) == 1


def test_relative_imports_inside_a_function_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = tmp_path / "package_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("def f(x):\n  from . import types\n  from .core import g\n  return g(x) + types.k\n")
    (package / "types.py").write_text("k = 1\n")
    found = []
    for factor, k in ((1, 1), (2, 1), (1, 2)):
        (package / "core.py").write_text(f"def h(x): return x * {factor}\ndef g(x): return h(x)\n")
        (package / "types.py").write_text(f"k = {k}\n")
        for name in [name for name in sys.modules if name.startswith("package_of_test")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        found.append(fingerprint(importlib.import_module("package_of_test.main").f))
    assert len(set(found)) == 3
