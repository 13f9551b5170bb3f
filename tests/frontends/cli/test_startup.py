"""Help, version and shell completion answer without torch; what they name is what the library has."""

import os
import subprocess
import sys

import pytest

from whence.auditing.audit import GROUP_COLUMNS
from whence.benchmarking.suites import SUITES
from whence.evaluation import evaluate
from whence.evaluation.imputers import IMPUTERS
from whence.evaluation.metrics.registry import METRICS
from whence.frontends.cli import app
from whence.frontends.common import choices
from whence.frontends.common.prototypes import PARAMETERIZATIONS
from whence.lrp.rules.presets import BOX_PRESETS, PRESETS
from whence.mechanistic.concepts import N_CHANNELS, N_REFERENCES
from whence.methods.registry import METHODS
from whence.stores.explain_dataset import SHARD_SIZE

LOADED = (
    "import sys, whence_command\n"
    "sys.argv = ['whence', *sys.argv[1:]]\n"
    "try:\n    whence_command.main()\n"
    "except SystemExit:\n    pass\n"
    "print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)"
)
COMMANDS = [command.callback.__name__.replace("_", "-") for command in app.registered_commands]


def answer(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True, env=os.environ | environment
    )


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_needs_no_torch(arguments):
    found = answer(*arguments)
    assert found.stdout.strip()
    assert found.stderr.strip().endswith("False False")


def test_completion_names_methods_and_presets_without_torch():
    found = answer(_WHENCE_COMPLETE="complete_bash", COMP_WORDS="whence explain --method epsilon_p", COMP_CWORD="3")
    assert found.stdout.split() == ["epsilon_plus", "epsilon_plus_flat"]
    assert found.stderr.strip().endswith("False False")


def test_choices_are_those_of_the_library():
    assert tuple(METHODS) == choices.METHODS
    assert tuple(PRESETS) == choices.PRESETS
    assert choices.BOX_PRESETS == BOX_PRESETS
    assert tuple(METRICS) == choices.METRICS
    assert tuple(IMPUTERS) == choices.IMPUTERS
    assert tuple(PARAMETERIZATIONS) == choices.PARAMETERIZATIONS
    assert tuple(SUITES) == choices.SUITES
    assert choices.GROUP_COLUMNS == GROUP_COLUMNS
    assert tuple(evaluate.METHODS) == choices.EVALUATED_METHODS
    assert tuple(evaluate.METRICS) == choices.EVALUATED_METRICS
    assert (choices.N_CHANNELS, choices.N_REFERENCES) == (N_CHANNELS, N_REFERENCES)
    assert choices.SHARD_SIZE == SHARD_SIZE
