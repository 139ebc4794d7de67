"""Every task in one picture and one table: `MUJOCO_GL=egl python results/tasks/suite.py`.

Each tile is an episode of seed 0 after 15 random steps, with the goal of its task state. Hurdles
are shown from where the runner is about to take the next one; a goal further away than the camera
sees is put near by. Writes `suite.png` and `README.md` beside this file.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from etude.envs import GYMNASIUM_IDS, registry
from etude.evaluate.canvas import INK, save

PAGE = """# Tasks

Every downstream task, as `python results/tasks/suite.py` draws and lists them. A skill made on the
body may act in all of its tasks: what a task changes about the body is declared, and a difference
that is not declared is refused. Numbers stand in each task's `EnvSpec.constants`, as do sources in
the classes of `envs/tasks/`.

![One picture of each task](suite.png)

{table}
"""
SIDE, COLUMNS = 150, 7  # pixels of a tile, tiles of a row
STEPS = 15
X = 1  # where a state row holds the first coordinate
MOVED: dict[str, dict[int, float]] = {  # entries of the state row that make a better picture
    "half-cheetah-goal": {-1: 2.0},
    "half-cheetah-hurdle-metra": {X: 6.2},
    "half-cheetah-hurdle-psd": {X: 3.3},
    "half-cheetah-hurdle-diayn": {X: 4.2},
    "ant-multi-goal": {-4: 2.0, -3: 5.0},
    "ant-multi-goal-leg-60": {-4: 2.0, -3: 5.0},
    "line-option": {0: 7},
}


def tile(task: str) -> np.ndarray:
    """A picture (SIDE, SIDE, 3) of one task."""
    env = registry.make_vec(task, 1, seed=0, threads=1, max_steps=0)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
    state = env.get_state()
    for entry, value in MOVED.get(task, {}).items():
        state[0, entry] = value
    env.set_state(state)
    picture = env.render(0, 2 * SIDE, 2 * SIDE).reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
    env.close()
    return picture.astype(np.uint8)


def sheet(tasks: tuple[str, ...]) -> Figure:
    """All tiles with their names."""
    rows = -(-len(tasks) // COLUMNS)
    inch = SIDE / 100
    figure = Figure((COLUMNS * (inch + 0.06), rows * (inch + 0.2)), 100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, task in zip(axes, tasks, strict=False):
        ax.imshow(tile(task), interpolation="nearest")
        ax.set_title(task, fontsize=6.5, color=INK, pad=2)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.97, bottom=0.005, wspace=0.04, hspace=0.1)
    return figure


def table(tasks: tuple[str, ...]) -> str:
    """One row per task, in the words of its class."""
    names = {env_id: name for name, (env_id, _) in GYMNASIUM_IDS.items()}
    lines = [
        "| task | Gymnasium | body | steps | | fields | changes |",
        "|---|---|---|---|---|---|---|",
    ]
    for env_id in tasks:
        _, task = registry.build(env_id)
        spec, text = task.spec, inspect.getdoc(type(task)).split("\n\n")[0].replace("\n", " ")
        fields = ", ".join(spec.task_fields) or "-"
        text = text.replace("|", "\\|")
        row = [f"`{env_id}`", names[env_id], spec.body, spec.max_steps, text, fields]
        lines.append("| " + " | ".join(map(str, [*row, "; ".join(spec.changes)])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Draw the sheet and write the table."""
    here = Path(__file__).parent
    save(sheet(registry.tasks()), here / "suite.png")
    (here / "README.md").write_text(PAGE.format(table=table(registry.tasks())))


if __name__ == "__main__":
    main()
