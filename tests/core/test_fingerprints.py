"""Fingerprints of code: what a function names counts, wherever it is defined; installed packages count by version."""

import logging
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
