"""The card of a library: a README for people, generated from what the library holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etude.skills.library_data import Contents, SetData, body_fields
from etude.skills.mlp import describe_fields

MAX_ROWS = 64


def card(contents: Contents) -> str:
    """Markdown: what it is, how to use it, the skills, where it comes from."""
    env = contents.env
    fields = body_fields(env)
    sets = "\n".join(_set_section(s) for s in contents.sets)
    parents = [f"{p['relation']} of {p['name']} ({p['id'][:12]})" for p in contents.parents]
    origin = {**contents.provenance, **({"parents": ", ".join(parents)} if parents else {})}
    return f"""# {contents.name}

Skills for **{env["body"]}**, discovered without a reward in `{env["id"]}`.

| | |
|---|---|
| observation | {describe_fields(fields)}: {sum(fields.values())} raw values |
| action | {env["action_dim"]} values in [-1, 1], one every {env["dt"]:g} s |
| sets | {", ".join(s.name for s in contents.sets)} |

## Use

```python
import gymnasium
import etude

library = etude.SkillLibrary.load("{contents.name}")  # this folder, or its name in the zoo
env = etude.SkillEnv(gymnasium.make("{gymnasium_id(env["id"])}"), library, k=25)
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
```

An action of `env` is a skill, held for 25 steps; any agent for Gymnasium environments can choose
them. `library.act(observation, z)` gives the action of skill `z` without `SkillEnv`.

{sets}
## Origin

{markdown_table(("", ""), list(origin.items()))}

Skills act on the body they were learnt on: same fields, actions, time step and mechanics. In
another environment, `SkillEnv` refuses them and says what differs.
"""


def gymnasium_id(env_id: str) -> str:
    """The Gymnasium id of one of our environments: `half-cheetah` -> `etude/HalfCheetah-v0`."""
    return f"etude/{''.join(part.capitalize() for part in env_id.split('-'))}-v0"


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A skill's row without nesting: {"metrics": {"return": 1}} -> {"metrics.return": 1}."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in flat_row(value).items()}
        else:
            flat[key] = value
    return flat


def _set_section(data: SetData) -> str:
    facts = [
        ("learner", data.learner),
        ("skill space", f"{data.space.kind}, {data.space.dim} dimensions"),
        ("policy", " x ".join(map(str, data.policy.sizes))),
        ("encoders", ", ".join(data.encoders) or "none"),
        *flat_row(data.metrics).items(),
    ]
    rows = [flat_row(row) for row in data.skills]
    heads = tuple(dict.fromkeys(key for row in rows for key in row))
    table = markdown_table(heads, [[row.get(key, "") for key in heads] for row in rows[:MAX_ROWS]])
    more = f"\n\n… and {len(rows) - MAX_ROWS} more." if len(rows) > MAX_ROWS else ""
    about = markdown_table(("", ""), facts)
    return f"## Set {data.name}\n\n{about}\n\n{table if rows else ''}{more}\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; numbers to four digits."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """A value on one line of a Markdown table; numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return " ".join(str(value).replace("|", "\\|").split())
