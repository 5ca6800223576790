"""Other optima against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.scaling.optimum import at_size, compute_optimal, fixed_ratio, fixed_size, for_serving, overtrained
from puna.scaling.published import LAWS, parametric_law, published

LAW = parametric_law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


@settings(max_examples=25, deadline=None)
@given(flops=st.floats(17, 27).map(lambda x: 10**x), other=st.floats(0.2, 5))
def test_no_other_size_has_less_loss(flops, other):
    best = compute_optimal(LAW, flops)
    assert best.train_flops == pytest.approx(flops)
    assert fixed_size(LAW, flops, best.params * other).loss >= best.loss - 1e-12


def test_fixed_ratio_costs_what_it_should():
    model = fixed_ratio(LAW, 1e23, 20)
    assert model.tokens_per_param == pytest.approx(20)
    assert model.train_flops == pytest.approx(1e23)


def test_overtrained_models_reach_the_same_loss_for_more_compute():
    best = compute_optimal(LAW, 1e23)
    half, third = overtrained(LAW, best, 2), overtrained(LAW, best, 3)
    assert half is not None
    assert third is not None
    assert half.loss == pytest.approx(best.loss)
    assert best.train_flops < half.train_flops < third.train_flops
    assert overtrained(LAW, best, 1000) is None


@settings(max_examples=20, deadline=None)
@given(served=st.floats(9, 15).map(lambda x: 10**x), price=st.floats(0.5, 5))
def test_serving_optimum_is_the_cheapest(served, price):
    found = for_serving(LAW, 2.1, served, price)
    assert found.model.loss == pytest.approx(2.1)
    assert found.model.params <= found.compute_optimal.params * (1 + 1e-6)
    for other in np.geomspace(0.3, 3, 41):
        params = found.model.params * other
        (model,) = [at_size(LAW, params, tokens) for tokens in [tokens_to(2.1, params)]]
        if np.isfinite(model.tokens):
            assert model.train_flops + 2 * price * served * params >= found.total * (1 - 1e-9)


def tokens_to(loss: float, params: float) -> float:
    left = loss - 1.8172 - 482.01 / params**0.3478
    return (2085.43 / left) ** (1 / 0.3658) if left > 0 else float("nan")


def test_nothing_served_means_compute_optimal():
    found = for_serving(LAW, 2.1, 0)
    assert found.model.params == pytest.approx(found.compute_optimal.params, rel=1e-3)
    assert found.saved == pytest.approx(0, abs=1e-6)


def test_a_loss_below_the_irreducible_is_refused():
    with pytest.raises(PunaError, match="irreducible"):
        for_serving(LAW, 1.5, 1e12)


def test_published_laws_say_what_their_papers_say():
    llama = LAWS["llama3"].frontier
    assert float(llama.tokens(3.8e25)) / 1e12 == pytest.approx(16.3, abs=0.1)
    assert float(llama.params(3.8e25)) / 1e9 == pytest.approx(389, abs=2)
    assert float(LAWS["llama3-text"].frontier.tokens(3.8e25)) / 1e12 == pytest.approx(10.5, abs=0.1)
    # Hoffmann et al., table A3: 67B parameters at about 6e23 by the first two approaches, fewer by the third
    assert float(LAWS["chinchilla"].frontier.params(5.76e23)) / 1e9 == pytest.approx(40, rel=0.2)
    assert float(LAWS["chinchilla-replication"].frontier.params(5.76e23)) / 1e9 == pytest.approx(70, rel=0.06)
    with pytest.raises(PunaError, match="chinchilla"):
        published("gpt4")
