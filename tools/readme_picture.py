"""Draw the README's picture: gradient descent, NGF and PF on a quadratic."""

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
    bowl = pfcore.objectives.quadratic_form(np.diag([2.0, 0.3]))
    start, learning_rate, num_steps = jnp.array([0.6, -0.9]), 0.9, 7
    times = learning_rate * np.arange(num_steps * 40 + 1) / 40

    # Legible on a phone, where labels of 14 points are 12 pixels high.
    fig, ax = plt.subplots(figsize=(6.0, 3.3), dpi=200)
    figures.contours(ax, bowl, domain=[[-0.72, 0.78], [-1, 0.1]], levels=14, swap=True)
    for name in ("ngf", "principal"):
        path = pfcore.integrate(named_flow(name, bowl, learning_rate), start, times).params
        ax.plot(path[:, 1], path[:, 0], color=figures.COLORS[name], lw=3)
    steps = pfcore.gradient_descent(bowl, start, learning_rate, num_steps)
    figures.dots(ax, steps[:, 1], steps[:, 0], lw=0, ms=9)
    ax.plot(0, 0, "*", color="#b8860b", ms=20, zorder=6)
    for x, y, name, text in (
        (-0.88, 0.66, "gd", "gradient descent"),
        (-0.81, 0.36, "ngf", "gradient flow"),
        (-0.6, -0.5, "principal", "principal flow"),
    ):
        figures.label(ax, x, y, name, text)
    plt.setp(ax.texts, fontsize=14)
    ax.set_axis_off()
    TARGET.write_bytes(figures.png(fig))


if __name__ == "__main__":
    main()
