"""Draw the README's picture: gradient descent, NGF and PF parting ways on a quadratic."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import pfcore
from pfcore import figures
from pfcore.flows import named_flow

TARGET = Path(__file__).parents[1] / "book" / "_static" / "readme.png"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    figures.use_style()
    bowl = pfcore.objectives.quadratic_form(np.diag([2.0, 0.2]))
    start, learning_rate, num_steps = jnp.array([0.6, -0.9]), 0.9, 10
    times = learning_rate * np.arange(num_steps * 40 + 1) / 40

    fig, ax = plt.subplots(figsize=(7.6, 3.4))
    figures.contours(ax, bowl, domain=[[-0.75, 0.75], [-1, 0.12]], levels=16, swap=True)
    for name in ("ngf", "principal"):
        path = pfcore.integrate(named_flow(name, bowl, learning_rate), start, times).params
        ax.plot(path[:, 1], path[:, 0], color=figures.COLORS[name], lw=2.5)
    steps = pfcore.gradient_descent(bowl, start, learning_rate, num_steps)
    figures.dots(ax, steps[:, 1], steps[:, 0], lw=0, ms=7)
    ax.plot(0, 0, "*", color="#b8860b", ms=16, zorder=6)
    figures.label(ax, -0.9, 0.6, "gd", "gradient descent", xytext=(8, 4))
    figures.label(ax, -0.83, 0.26, "ngf", "gradient flow", xytext=(8, 6))
    figures.label(ax, -0.66, -0.45, "principal", "principal flow")
    ax.set_axis_off()
    fig.savefig(TARGET, dpi=130)


if __name__ == "__main__":
    main()
