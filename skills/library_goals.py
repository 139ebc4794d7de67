"""Which of a library's networks say where a state lies, and which skill leads there.

Networks are known by their names:

    phi             skills are ways for it to move (METRA): along phi(g) - phi(s) to a goal g
    features        scaled to length one, phi of skills that have that length; the skill of a goal
                    is phi(g), wherever one is (VISR, APS)
    goal            names the skill of a goal: the nearest to its output (CRL, goal-box)
    discriminator   the same; a Gaussian one gives means first, then deviations (DIAYN)

Shapes: B batch (may be absent), O raw body observation, Z skill, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from numpy.typing import ArrayLike

from etude.skills.mlp import RawMLP
from etude.skills.spaces import Array, Gaussian, SkillSpace, Sphere

PHI, FEATURES, GOAL, DISCRIMINATOR = "phi", "features", "goal", "discriminator"
Network = Callable[[ArrayLike], Array]


def encoder(space: SkillSpace, nets: Mapping[str, RawMLP]) -> Network | None:
    """phi (B, D) of observations (B, O), if a library with these networks has it."""
    return nets[PHI] if PHI in nets else _named(space, nets, FEATURES)


def namer(space: SkillSpace, nets: Mapping[str, RawMLP]) -> Network | None:
    """The skill (B, Z) of goals (B, O), if a network tells it whatever the place to start from."""
    names = (GOAL,) if PHI in nets else (GOAL, DISCRIMINATOR, FEATURES)
    return _named(space, nets, *names)


def _named(space: SkillSpace, nets: Mapping[str, RawMLP], *names: str) -> Network | None:
    """The nearest skill to what the first of the networks `names` gives that fits the space."""
    for net in (nets[name] for name in names if name in nets and _fits(space, name, nets[name])):
        return lambda obs: space.nearest(net(obs)[..., : space.dim])
    return None


def _fits(space: SkillSpace, name: str, net: RawMLP) -> bool:
    """Whether what it gives may be a skill; features are learnt beside other skills as well."""
    width = 2 * space.dim if name == DISCRIMINATOR and isinstance(space, Gaussian) else space.dim
    return net.net.sizes[-1] == width and (name != FEATURES or isinstance(space, Sphere))
