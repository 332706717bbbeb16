"""Draw docs/images/learn_sde.svg: the same particles by the ODE and by Flow-GRPO's SDE.

python scripts/learn_figure.py

The data are a mixture of two Gaussians on a line, whose velocity E[eps - x_0 | x] is known in
closed form; the steps are the trainer's own.
"""

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from trainer.algorithm import sde

OUT = Path(__file__).parents[1] / "docs" / "images" / "learn_sde.svg"
CENTRES = torch.tensor([-1.3, 1.0], dtype=torch.float64)
SHARES = torch.tensor([0.6, 0.4], dtype=torch.float64)
SPREAD, STEPS, SHOWN, COUNT, NOISE = 0.22, 40, 60, 6000, 0.7
WIDTH, HEIGHT, TOP, GAP, BARS = 400.0, 260.0, 46.0, 40.0, 60.0
COLORS = {"ode": "#00796b", "flow_sde": "#c2410c"}
TITLES = {"ode": "ODE: the start decides the end", "flow_sde": "SDE: noise in each step, a = 0.7"}


def velocity(x: Tensor, sigma: float) -> Tensor:
    """Of each particle, (N,): the Gaussians' linear velocities, weighted by the posterior."""
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    offset = x[:, None] - (1 - sigma) * CENTRES
    posterior = torch.softmax(SHARES.log() - offset**2 / (2 * variance), dim=1)
    slope = (sigma - (1 - sigma) * SPREAD**2) / variance
    return (posterior * (slope * offset - CENTRES)).sum(1)


def paths(kind: str) -> Tensor:
    """Positions before and after each step, (STEPS + 1, COUNT)."""
    source = torch.Generator().manual_seed(0)
    sigmas = torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64)
    xs = [torch.randn(COUNT, generator=source, dtype=torch.float64)]
    for sigma, after in itertools.pairwise(sigmas):
        # The last step is deterministic, as in sampling: noise that is added there stays.
        now = kind if after > 0 else "ode"
        step = sde.transition(
            now, xs[-1], velocity(xs[-1], float(sigma)), sigma, after,
            noise_level=NOISE, sigma_max=sigmas[1],
        )  # fmt: skip
        noise = torch.randn(COUNT, generator=source, dtype=torch.float64)
        xs.append(sde.sample(step, noise))
    return torch.stack(xs)


def panel(kind: str, left: float) -> list[str]:
    """Paths from noise (left) to data (right), and the histogram of the ends."""
    found = paths(kind)
    y = lambda x: TOP + HEIGHT * (0.5 - float(x) / 6.4)  # noqa: E731
    step = WIDTH / STEPS
    parts = [f'<text x="{left}" y="30" class="title">{TITLES[kind]}</text>']
    for particle in found[:, :SHOWN].T:
        points = " ".join(f"{left + i * step:.1f},{y(x):.1f}" for i, x in enumerate(particle))
        parts.append(f'<polyline points="{points}" stroke="{COLORS[kind]}"/>')
    edges = torch.linspace(-2.4, 2.4, 49, dtype=torch.float64)
    counts = torch.histogram(found[-1], edges).hist / COUNT
    exact = sum(
        share * 0.1 * math.sqrt(1 / (2 * math.pi)) / SPREAD
        * torch.exp(-((edges[:-1] + 0.05 - centre) ** 2) / (2 * SPREAD**2))
        for share, centre in zip(SHARES, CENTRES, strict=True)
    )  # fmt: skip
    start, scale = left + WIDTH + 6, BARS / float(torch.as_tensor(exact).max())
    for count, edge in zip(counts, edges, strict=False):
        parts.append(
            f'<rect x="{start}" y="{y(edge + 0.1):.1f}" width="{float(count) * scale:.1f}"'
            f' height="{HEIGHT * 0.1 / 6.4:.1f}" fill="{COLORS[kind]}"/>'
        )
    line = " ".join(
        f"{start + float(density) * scale:.1f},{y(edge + 0.05):.1f}"
        for density, edge in zip(torch.as_tensor(exact), edges, strict=False)
    )
    parts.append(f'<polyline points="{line}" class="exact"/>')
    parts.append(f'<text x="{left}" y="{TOP + HEIGHT + 20}">noise, σ = 1</text>')
    parts.append(
        f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 20}" text-anchor="end">data, σ = 0</text>'
    )
    return parts


def main() -> None:
    """Write the figure."""
    wide = 2 * (WIDTH + BARS + 10) + GAP
    style = (
        "text { font: 14px system-ui, sans-serif; fill: #7a828c } .title { font-weight: 600 }"
        " polyline { fill: none; stroke-width: 1; opacity: .55 }"
        " .exact { stroke: #7a828c; stroke-width: 2; opacity: 1 } rect { opacity: .6 }"
    )
    body = [*panel("ode", 10), *panel("flow_sde", WIDTH + BARS + GAP + 10)]
    OUT.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {TOP + HEIGHT + 34:.0f}"'
        f' role="img" aria-label="Paths of the ODE and of the SDE">\n<style>{style}</style>\n'
        + "\n".join(body)
        + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
