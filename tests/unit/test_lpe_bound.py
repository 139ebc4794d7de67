"""The objective of latent-predictive empowerment is a lower bound, and tight where it can be.

For skills z ~ p(z), blocks of actions a ~ pi(a | z), end states s ~ W(s | a), a model xi(y | a) of
latents y, an encoder eta(y | s) and a posterior psi(z | y) (Levy et al. 2024, arXiv:2410.11155),

    J = E[ log psi(z | y) - log p(z) ] - E[ KL( xi(. | a) || eta(. | s) ) ]  <=  I(Z; S).

Proof. The first term is at most I(Z; Y). With y and s independent given a, the second one is
-H(Y | A) - E log eta(y | s) >= H(Y | S) - H(Y | A). So J <= I(Y; S) - I(Y; A | Z), by the chain
Z - A - Y. And I(Y; S) <= I(Z; S) + I(Y; S | Z) <= I(Z; S) + I(Y; A | Z), by that of A given Z.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.envs.testbeds.worlds import grid
from etude.evaluate.capacity import capacity, mutual_information

Array = np.ndarray
GRIDS = [
    *((5, start, n, 0.0) for start, n in (("centre", 1), ("centre", 2), ("corner", 2))),
    *((5, start, n, 0.2) for start, n in (("centre", 1), ("centre", 2), ("corner", 2))),
    *((5, "edge", 2, 0.0), (5, "centre", 3, 0.2), (7, "centre", 3, 0.0), (7, "centre", 3, 0.1)),
]
AMPLITUDE = [  # std of the noise, I(Z; S), best J, capacity of inputs in [-1, 1]
    (0.02, 3.204, 3.187, 3.225),
    (0.05, 2.315, 2.274, 2.365),
    (0.10, 1.667, 1.592, 1.758),
    (0.20, 1.064, 0.940, 1.219),
    (0.50, 0.419, 0.247, 0.653),
]


def times_log(weight: Array, value: Array) -> float:
    """Sum of weight * log(value), with 0 log 0 = 0; minus infinity where only the value is 0."""
    kept = weight > 0
    with np.errstate(divide="ignore"):
        return float((weight[kept] * np.log(value[kept])).sum())


def diversity(p: Array, pi: Array, xi: Array, psi: Array) -> float:
    """The first term of J. Shapes: p (Z,), pi (Z, A), xi (A, Y), psi (Y, Z)."""
    return times_log((p[:, None] * pi @ xi).T, psi) - times_log(p, p)


def redundancy(a: Array, w: Array, xi: Array, eta: Array) -> float:
    """The second term of J. Shapes: a (A,), w (A, S), xi (A, Y), eta (S, Y)."""
    sy = (a[:, None] * w).T @ xi  # y and s are independent given a
    return times_log(a[:, None] * xi, xi) - times_log(sy, eta)


def bound(p: Array, pi: Array, w: Array, xi: Array, eta: Array, psi: Array) -> float:
    """J in nats."""
    return diversity(p, pi, xi, psi) - redundancy(p @ pi, w, xi, eta)


def posterior(r: Array, w: Array) -> Array:
    """p(a | s), (S, A); uniform where s is out of reach."""
    joint = (r[:, None] * w).T
    reach = joint.sum(axis=1, keepdims=True)
    return np.where(reach > 0, joint / np.where(reach > 0, reach, 1), 1 / len(r))


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(2, 5), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.1, 0.5, 1.0, 10.0]), min_size=3, max_size=3),
    st.booleans(),
)
@settings(max_examples=300)
def test_never_above_the_mutual_information(
    seed: int, sizes: list[int], spread: list[float], fitted: bool
) -> None:
    """Whatever skills, model, encoder and posterior are; `fitted` ones come closest."""
    rng = np.random.default_rng(seed)
    z, a, s, y = sizes
    p, pi = rng.dirichlet(np.ones(z)), rng.dirichlet(np.full(a, spread[0]), z)
    w, xi = rng.dirichlet(np.full(s, spread[1]), a), rng.dirichlet(np.full(y, spread[2]), a)
    if fitted:
        eta, psi = posterior(p @ pi, w) @ xi, posterior(p, pi @ xi)
    else:
        eta, psi = rng.dirichlet(np.ones(y), s), rng.dirichlet(np.ones(z), y)
    assert bound(p, pi, w, xi, eta, psi) <= mutual_information(pi @ w, p) + 1e-9


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(2, 5))
def test_tight_when_the_code_is_the_action(seed: int, a: int, s: int) -> None:
    rng = np.random.default_rng(seed)
    p, w, same = rng.dirichlet(np.ones(a)), rng.dirichlet(np.ones(s), a), np.eye(a)
    exact = bound(p, same, w, same, posterior(p, w), same)
    assert exact == pytest.approx(mutual_information(w, p), abs=1e-6)


def test_a_smaller_weight_is_no_bound() -> None:
    p, same, w = np.full(2, 0.5), np.eye(2), np.array([[0.9, 0.1], [0.1, 0.9]])
    whole, part = diversity(p, same, same, same), redundancy(p, w, same, posterior(p, w))
    assert whole - part == pytest.approx(mutual_information(w, p), abs=1e-12)
    assert whole - 0.9 * part > mutual_information(w, p) + 0.01


def test_the_other_direction_of_the_divergence_is_no_bound() -> None:
    """Five actions with one outcome, and a code that names the action with probability 0.3.

    An encoder that never names one is as far from the code as -ln 0.7, which the code outweighs.
    """
    p, same, w, named = np.full(5, 0.2), np.eye(5), np.ones((5, 1)), 0.3
    xi = np.concatenate([named * same, np.full((5, 1), 1 - named)], axis=1)
    eta, psi = np.eye(6)[5:], posterior(p, xi)
    reverse = -math.log(1 - named)  # KL(eta || xi)
    assert diversity(p, same, xi, psi) == pytest.approx(named * math.log(5), abs=1e-12)
    assert diversity(p, same, xi, psi) - reverse > mutual_information(w, p) + 0.1
    assert bound(p, same, w, xi, eta, psi) == -math.inf
    assert bound(p, same, w, xi, p @ xi[None], psi) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("side", "start", "n", "slip"), GRIDS)
def test_alternating_maximisation_is_blahut_arimoto(
    side: int, start: str, n: int, slip: float
) -> None:
    """Skills = blocks with probabilities softmax(logits), the code is the block itself.

    The best encoder for given skills is the posterior of the block; the best logits for a given
    encoder are E_s log eta(a | s). J of the two in turn ends at the capacity.
    """
    w = grid(side, slip).channel(start, n)
    known, same, logits, before = capacity(w), np.eye(len(w)), np.zeros(len(w)), -1.0
    for i in range(2000):
        r = np.exp(logits - logits.max())
        r /= r.sum()
        eta = posterior(r, w)
        if i % 50 == 0:
            found = bound(r, same, w, same, eta, same)
            assert before - 1e-12 <= found <= known.upper + 1e-9
            if found - before < 1e-9:
                break
            before = found
        log_eta = np.log(eta, out=np.full_like(eta, -1e3), where=eta > 1e-300)
        logits = np.where(w > 0, w * log_eta.T, 0).sum(axis=1)
    assert found == pytest.approx(known.lower, abs=1e-6)


# ---- z ~ U[-1, 1], a = z, s = a + N(0, std^2), all of xi, eta and psi linear and Gaussian


def gaussian_bound(std: float, parameters: Tensor) -> Tensor:
    """J in nats; the scale of y is free, so xi's mean is a itself.

    Parameters: eta's mean k s, psi's mean g y, and the logarithms of the deviations of xi (not
    below 1e-4), eta and psi.
    """
    k, g, log_xi, log_eta, log_psi = parameters
    xi = log_xi.exp() + 1e-4
    var = 1 / 3  # of z
    error = (1 - g) ** 2 * var + g**2 * xi**2
    diversity = -0.5 * math.log(2 * math.pi) - log_psi - error / (2 * (2 * log_psi).exp())
    gap = (1 - k) ** 2 * var + k**2 * std**2  # of the means of xi and eta
    kl = log_eta - xi.log() + (xi**2 + gap) / (2 * (2 * log_eta).exp()) - 0.5
    return diversity + math.log(2) - kl


def gaussian_information(std: float) -> float:
    """I(Z; S) by the entropy of s, whose density is a difference of two normal distributions."""
    s = np.linspace(-1 - 10 * std, 1 + 10 * std, 20_001)
    up, down = ((torch.tensor(s + d) / (std * 2**0.5)).erf().numpy() for d in (1, -1))
    density = (up - down) / 4
    entropy = -times_log(density, density) * (s[1] - s[0])
    return entropy - 0.5 * math.log(2 * math.pi * math.e * std**2)


@pytest.mark.parametrize(("std", "information", "best"), [row[:3] for row in AMPLITUDE])
def test_gaussian_families(std: float, information: float, best: float) -> None:
    """The best J of direct optimisation; an unbounded posterior wastes the edges of the cube."""
    parameters = torch.tensor([1.0, 1.0, -2.0, -1.0, -1.0], dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS([parameters], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -gaussian_bound(std, parameters)
        value.backward()
        return value

    optimiser.step(loss)
    found = float(gaussian_bound(std, parameters).detach())
    # at the optimum xi is sharp, and eta's variance is what a linear guess of a from s leaves
    left = (std**2 / 3) / (1 / 3 + std**2)
    closed = math.log(2) - 0.5 * math.log(2 * math.pi * math.e * left)
    assert found == pytest.approx(closed, abs=1e-3)
    assert found == pytest.approx(best, abs=0.01)
    assert gaussian_information(std) == pytest.approx(information, abs=0.01)
    assert found < gaussian_information(std)


@pytest.mark.parametrize(("std", "known"), [(row[0], row[3]) for row in AMPLITUDE if row[0] > 0.02])
def test_capacity_of_a_bounded_amplitude(std: float, known: float) -> None:
    """Blahut-Arimoto on a fine grid; uniform skills miss what pushing to the edges would gain."""
    a = np.linspace(-1, 1, 101)
    s = np.linspace(-1 - 5 * std, 1 + 5 * std, 241)
    w = np.exp(-0.5 * ((s - a[:, None]) / std) ** 2)
    found = capacity(w / w.sum(axis=1, keepdims=True), tolerance=0.004, iterations=3000)
    assert found.upper - found.lower <= 0.01
    assert found.lower == pytest.approx(known, abs=0.01)
