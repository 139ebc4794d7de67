"""IQE is a quasimetric whatever its latents are, and learns that a way is one-way."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from etude.errors import UsageError
from etude.worldmodels.quasimetric import IQE, Quasimetric, lengths, spread_loss

Array = np.ndarray


def numpy_length(begin: Array, end: Array) -> float:
    """The union of intervals, cut at every border: a piece counts if any interval covers it."""
    cuts = np.unique(np.concatenate((begin, end)))
    middles = (cuts[1:] + cuts[:-1]) / 2
    covered = ((begin[:, None] < middles) & (middles < end[:, None])).any(0)
    return float(np.diff(cuts)[covered].sum())


def numpy_iqe(u: Array, v: Array, components: int, weight: float) -> Array:
    found = []
    for one, other in zip(u, v, strict=True):
        pairs = zip(np.split(one, components), np.split(other, components), strict=True)
        parts = [numpy_length(a, b) for a, b in pairs]
        found.append((1 - weight) * np.mean(parts) + weight * np.max(parts))
    return np.array(found)


@pytest.mark.parametrize(("components", "size"), [(1, 1), (3, 4), (6, 8)])
def test_the_distance_is_that_of_numpy(components: int, size: int) -> None:
    head = IQE(components, size).double()
    head.raw.data.fill_(0.7)
    u, v = np.random.default_rng(0).normal(size=(2, 50, components * size))
    v[:10] = np.round(v[:10])
    u[:10] = np.round(u[:10])  # intervals that touch, and empty ones
    got = head(torch.from_numpy(u), torch.from_numpy(v)).detach().numpy()
    np.testing.assert_allclose(got, numpy_iqe(u, v, components, 1 / (1 + np.exp(-0.7))), atol=1e-10)


def test_it_is_a_quasimetric_for_any_latents() -> None:
    head = IQE(5, 6).double()
    g = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 2000, 30, generator=g, dtype=torch.float64) * 3
    b[:500] = a[:500] + 0.1 * b[:500]  # also triples that nearly lie on a line
    with torch.no_grad():
        there, back, beyond, whole = head(a, b), head(b, a), head(b, c), head(a, c)
        assert (whole <= there + beyond + 1e-9).all()
        assert (head(a, a) == 0).all()
    assert (there > 0).all() and (back > 0).all()
    assert (there - back).abs().max() > 1


def test_leading_sizes_broadcast_and_other_widths_are_refused() -> None:
    head = IQE(2, 3)
    u, v = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    every = head(u.unsqueeze(1), v)  # (7, 7)
    torch.testing.assert_close(every.diagonal(), head(u, v))
    with pytest.raises(UsageError, match="latents of 5 and 6 numbers"):
        head(u[:, :5], v)


def test_gradients_reach_both_latents() -> None:
    u, v = torch.randn(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lengths, (u.requires_grad_(), v.requires_grad_()))


# ---- a circle that is walked one way, with a dead end that is walked both ways

RING, DEAD = 6, 2


def moves() -> dict[int, list[int]]:
    """Places that follow a place: round the ring, and from place 0 into the dead end and back."""
    ways = {i: [(i + 1) % RING] for i in range(RING)}
    ways[0].append(RING)
    ways |= {RING: [RING + 1, 0], RING + 1: [RING]}
    return ways


def shortest() -> Array:
    ways = moves()
    steps = np.full((len(ways), len(ways)), np.inf)
    for start in ways:
        steps[start, start], queue = 0, deque([start])
        while queue:
            here = queue.popleft()
            for there in ways[here]:
                if np.isinf(steps[start, there]):
                    steps[start, there] = steps[start, here] + 1
                    queue.append(there)
    return steps


def learned(updates: int) -> Array:
    """All distances after that many updates on single steps and random pairs."""
    places = RING + DEAD
    eye = torch.eye(places)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metric = Quasimetric(places, (32,), components=8, size=4)
    raw = torch.zeros((), requires_grad=True)  # lambda = softplus(raw)
    optimiser = torch.optim.Adam(metric.parameters(), lr=3e-3)
    dual = torch.optim.Adam([raw], lr=3e-2)
    steps = torch.tensor([(i, j) for i, there in moves().items() for j in there])
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        start, end = torch.randint(places, (2, 64), generator=generator)
        apart, step = metric(eye[start], eye[end]), metric(eye[steps[:, 0]], eye[steps[:, 1]])
        price = torch.nn.functional.softplus(raw)
        loss, violation = spread_loss(step, apart, price, slack=0.05, offset=15.0, beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dual.zero_grad()
        (-price * violation.detach()).backward()
        dual.step()
    with torch.no_grad():
        return np.asarray(
            metric(eye.unsqueeze(1).expand(-1, places, -1), eye.expand(places, -1, -1))
        )


def test_a_one_way_ring_is_learned_to_be_one() -> None:
    found, true = learned(700), shortest()
    off = ~np.eye(len(true), dtype=bool)
    assert np.corrcoef(found[off], true[off])[0, 1] > 0.95, found.round(1)
    assert np.abs(found - true).max() < 1.5, found.round(1)
    assert found[1, 0] > 3 * found[0, 1]  # five steps on, for one step back
    assert found[0, 1] == pytest.approx(1, abs=0.3)


def test_steps_within_the_slack_cost_nothing() -> None:
    short, long = torch.full((4,), 0.5), torch.full((4,), 3.0)
    price, far = torch.tensor(2.0), torch.full((4,), 100.0)
    settings = {"slack": 0.5, "offset": 10.0, "beta": 1.0}
    for step, expected in ((short, -0.25), (long, 4 - 0.25)):
        loss, violation = spread_loss(step, far, price, **settings)
        assert float(violation) == pytest.approx(expected)
        assert float(loss) == pytest.approx(2 * expected, abs=1e-6)
    near = spread_loss(short, far - 95, price, **settings)[0]
    assert float(near) == pytest.approx(2 * -0.25 + np.log1p(np.exp(5.0)), abs=1e-5)
