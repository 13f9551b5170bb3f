"""Random networks: values untouched, relevance conserved with what is absorbed, equal to the output where nothing can be."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional as F

import whence
from support.random_networks import Plan, build, plans
from support.selection import ALL
from whence import LRP, Epsilon, presets

pytestmark = pytest.mark.usefixtures("float64")


ABSORBING = {"shift", "pad"}  # steps that add constants by themselves


RULES = st.sampled_from(
    [
        presets.epsilon_gamma(),
        presets.epsilon_plus(),
        presets.epsilon_alpha2_beta1(),
        presets.epsilon_plus_flat(),
        presets.epsilon_gamma_box(-9.0, 9.0),
        presets.deep_taylor(),
    ]
)


def picture(plan: Plan) -> torch.Tensor:
    return torch.randn(2, 2, *[4] * plan.dimensions)


def explained(model, x, rules):
    with torch.no_grad():
        plain = model(x)
    before = x.clone()
    e = whence.explain(model, x, method=LRP(rules))
    assert torch.equal(x, before)
    assert torch.equal(e.output, plain.max(1).values)
    return e


@settings(max_examples=5000 if ALL else 500)
@given(plans(), st.integers(0, 2**16))
def test_without_biases_relevance_is_the_output(plan, seed):
    if any(kind in ABSORBING for kind, _ in plan.steps):
        plan = Plan(plan.dimensions, plan.channels, plan.stem_bias, tuple(s for s in plan.steps if s[0] not in ABSORBING))
    model = build(plan, seed, biases=False)
    zero = whence.presets.Composite((((F.linear, *presets.CONVOLUTIONS), Epsilon(0)),))
    e = explained(model, picture(plan), zero)
    flow = e.relevance.abs().flatten(1).sum(1) + 1  # an output may be the rounding of zero
    assert ((e.relevance.flatten(1).sum(1) - e.output).abs() <= 1e-6 * e.output.abs() + 1e-13 * flow).all()


@settings(max_examples=5000 if ALL else 500)
@given(plans(), st.integers(0, 2**16), RULES)
def test_with_biases_relevance_and_what_was_absorbed_is_the_output(plan, seed, rules):
    model = build(plan, seed, biases=True)
    e = explained(model, picture(plan), rules)
    account = e.conservation
    flow = account.relevance.abs() + sum(a.abs() for a in account.by_layer.values())  # rounding grows with what flows
    difference = account.output - account.relevance - account.absorbed
    assert (difference.abs() <= 1e-6 * account.output.abs() + 1e-11 * flow).all(), account


def without_knowledge_of_signs(patch):
    from whence.lrp.engine.tensor_facts import Facts

    patch.setattr(Facts, "nonnegative", property(lambda known: False, lambda known, holds: None))


def without_relus_taking_over(patch):
    from whence.lrp.engine import function_mode
    from whence.lrp.ops import registry
    from whence.lrp.ops.arithmetic import plain_gradient

    patch.setitem(registry.TREATMENTS, "relu", plain_gradient)
    patch.setattr(function_mode, "find_op", registry.find_op.__wrapped__)


@pytest.mark.parametrize("without", [without_knowledge_of_signs, without_relus_taking_over])
@settings(max_examples=2000 if ALL else 150)
@given(plans(), st.integers(0, 2**16), RULES)
def test_what_makes_it_cheap_does_not_change_relevance(without, plan, seed, rules):
    model, x = build(plan, seed, biases=True), picture(plan)
    cheap = whence.explain(model, x, method=LRP(rules)).relevance
    with pytest.MonkeyPatch.context() as patch:
        without(patch)
        plain = whence.explain(model, x, method=LRP(rules)).relevance
    flow = plain.abs().flatten(1).sum(1).clamp(min=1e-6)
    assert ((cheap - plain).abs().flatten(1).amax(1) <= 1e-7 * flow).all()
