"""A training step of the heads on genes beside PyTorch restatements of the same, back to back on the same arrays.

  GEARS    64 cells x 5,045 genes, h = 64, on features of a foundation model (64 numbers a gene) or on its own tables:
           a batch with its gradients added up; an epoch of 5,000 cells is 79 of them and 10 updates, which the row adds
  DeepSEM  8 cells x 1,000 genes: a step of the networks, and one of A, of which there are twice as many

Seen once on two cores that other work shared, so no more than a hint (cpu seconds of a step, ours and torch's): GEARS
on features 3.7 and 5.7, by the clock 1.6 times as fast; alone 4.4 and 7.9, 1.8 times; DeepSEM's networks 0.20 and 0.39,
2.1 times; its A 0.19 and 0.74, 3.8 times.

The restatements are written as the papers' formulas read, with torch's own layers (`pip install "scfm_jax[bench]"`).
"""

import functools
import importlib.util
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benches import drug_heads
from experiments.benches import step as bench_step
from scfm_jax.tasks import heads
from scfm_jax.tasks.networks import deepsem
from scfm_jax.tasks.perturbation import gears

CELLS, GENES, WIDTH, EDGES, EPOCH = 64, 5045, 64, 21, 5000
NETWORK_GENES = 1000


def rows(seconds: float = 5.0, small: bool = False) -> list[dict]:
    """Return rows of seconds a step and an epoch, ours and torch's, with the ratio where torch is installed.

    Args:
      small: sizes to test the bench itself with.
    """
    n_cells, n_genes, n_network = (4, 50, 20) if small else (CELLS, GENES, NETWORK_GENES)
    torch_there = importlib.util.find_spec("torch") is not None
    out = []
    for name, preset, features in (("GEARS on features", "repo", True), ("GEARS alone", "gears", False)):
        batch, shared = gears_batch(n_cells, n_genes, features)
        head = gears.head(preset, n_genes, width=WIDTH)
        per_epoch = -(-EPOCH // n_cells)
        ours, update = gears_seconds(head, batch, shared, seconds)
        epoch = per_epoch * ours["s"] + per_epoch / gears.TRAINING.sums * update
        out.append({"part": f"{name}, {n_cells} x {n_genes:,}"} | ours | {"epoch_s": epoch})
        if torch_there:
            timing, update = torch_gears(head.network, batch, shared, seconds)
            theirs = per_epoch * timing["s"] + per_epoch / gears.TRAINING.sums * update
            out.append({"part": "  torch"} | timing | {"epoch_s": theirs, "times_ours": theirs / epoch})
    batch, start = deepsem_batch(n_network)
    for name, turn in (("networks", 0), ("A", 1)):
        ours = deepsem_seconds(batch, start, turn, seconds)
        out.append({"part": f"DeepSEM, {name}, {len(batch['x'])} x {n_network:,}"} | ours)
        if torch_there:
            timing = torch_deepsem(batch, start, turn, seconds)
            out.append({"part": "  torch"} | timing | {"times_ours": timing["s"] / ours["s"]})
    return out + drug_heads.rows(seconds, torch_there, small)


def gears_batch(n_cells: int, n_genes: int, features: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a batch of the head, a fifth of the cells controls, and what all batches share."""
    rng = np.random.default_rng(0)
    x = np.log1p(rng.poisson(0.5, (n_cells, n_genes))).astype(np.float32)
    condition = rng.integers(0, 5, n_cells)
    flags = np.zeros((n_cells, n_genes), np.float32)
    flags[np.arange(n_cells), condition] = condition > 0
    batch = {"x": x, "flags": flags, "y": np.abs(x + 0.1 * rng.normal(size=x.shape)), "condition": condition}
    if features:
        batch["features"] = rng.normal(size=(n_cells, n_genes, WIDTH))
    batch = {k: v.astype(np.int32 if k == "condition" else np.float32) for k, v in batch.items()}
    graphs = []
    for _ in range(2):
        target = np.repeat(np.arange(n_genes), EDGES)
        graphs.append((rng.integers(0, n_genes, len(target)), target, rng.uniform(0.1, 1, len(target))))
    edges = [gears.go_graph(*edges, n_genes) for edges in graphs]
    every = np.ones((5, n_genes), bool)
    return batch, {
        "graph": edges[0],
        "coexpression": edges[1],
        "control": x.mean(0),
        "retained": every,
        "de": every,
    }


def gears_seconds(head: heads.Head, batch: Any, shared: Any, seconds: float) -> tuple[dict[str, float], float]:
    """Return the timing of a batch whose gradients are added up, and the seconds that an update takes beside it."""
    training, timing = gears.TRAINING, {}
    batch, shared = jax.device_put((batch, shared))
    state = heads._begin(head, training, jnp.uint32(0), batch, shared)
    for last in (False, True):
        call = functools.partial(heads._batch, head, training, 0, last)
        step = lambda state, batch, call=call: call(state, batch, shared, jnp.uint32(0), jnp.float32(1))  # noqa: E731
        timing[last], state = bench_step._repeat(lambda state, step=step: step(state, batch)[0], state, seconds)
    return timing[False], max(timing[True]["s"] - timing[False]["s"], 0.0)


def deepsem_batch(n_genes: int, n_cells: int = 8) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return cells with half of their genes expressed, and a start."""
    rng = np.random.default_rng(0)
    x = np.log1p(rng.poisson(0.7, (100, n_genes)))
    x, mask = deepsem.standardised(x)
    return {"x": x[:n_cells], "mask": mask[:n_cells]}, deepsem.random_start(n_genes, 0)


def deepsem_seconds(batch: Any, start: np.ndarray, turn: int, seconds: float) -> dict[str, float]:
    """Return the timing of an update of the networks (turn 0) or of A (1)."""
    head, training = heads.Head(deepsem.DeepSEM(), deepsem.Loss()), deepsem.TRAINING
    batch, shared = jax.device_put((batch, {"start": start}))
    state = heads._begin(head, training, jnp.uint32(0), batch, shared)
    how = (head, training, turn, True)
    step = lambda state: heads._batch(*how, state, batch, shared, jnp.uint32(0), jnp.float32(1))[0]  # noqa: E731
    return bench_step._repeat(step, state, seconds)[0]


# --------------------------------------------------------------------------------------------------------------- torch


def torch_gears(network: gears.Gears, batch: Any, shared: Any, seconds: float) -> tuple[dict[str, float], float]:
    """Return the timing of the same batch and of an update in torch."""
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)
    n_genes, h = network.n_genes, network.width
    batch = {name: torch.from_numpy(x) for name, x in batch.items()}
    control, n_cells = torch.from_numpy(shared["control"]), len(batch["x"])

    def mlp(*widths: int) -> nn.Sequential:
        layers = [(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in itertools.pairwise(widths)]
        return nn.Sequential(*sum(layers, ())[:-1])

    def adjacency(graph: Any) -> torch.Tensor:
        places = torch.from_numpy(np.stack([graph.receivers, graph.senders]).astype(np.int64))
        weights = torch.from_numpy(graph.edges)
        return torch.sparse_coo_tensor(places, weights, (n_genes, n_genes), check_invariants=True).coalesce()

    near = {name: adjacency(shared[name]) for name in ("graph", "coexpression")}
    parts = nn.ModuleDict(
        {name: nn.Embedding(n_genes, h, max_norm=True) for name in ("gene", "perturbed", "position")}
        | {name: nn.BatchNorm1d(h) for name in ("before", "marked", "both")}
        | {"graph": nn.Linear(h, h), "coexpression": nn.Linear(h, h), "flag": nn.Linear(1, h), "joined": mlp(h, h, h)}
        | {"effect": mlp(h, h, h), "recover": mlp(h, 2 * h, h), "cross": mlp(n_genes, h, h)}
    )
    shapes = ((n_genes, h, 1), (n_genes, 1), (1, n_genes, h + 1), (1, n_genes))
    w1, b1, w2, b2 = weights = [nn.Parameter(nn.init.xavier_normal_(torch.zeros(shape))) for shape in shapes]
    parameters = [*parts.parameters(), *weights]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=5e-4)
    every = torch.arange(n_genes)

    def forward() -> torch.Tensor:
        if "features" in batch:
            x = batch["features"].reshape(-1, h)
        else:
            x = parts["gene"](every.repeat(n_cells))
        x = parts["before"](x).relu()
        if network.coexpression:
            position = parts["coexpression"](torch.sparse.mm(near["coexpression"], parts["position"](every)))
            x = parts["joined"](x + 0.2 * position.repeat(n_cells, 1))
        table = parts["graph"](torch.sparse.mm(near["graph"], parts["perturbed"](every)))
        effect = parts["effect"](batch["flags"] @ table) * batch["flags"].any(1, keepdim=True)
        x = x.reshape(n_cells, n_genes, h) + effect[:, None]
        x = x.reshape(-1, h) + parts["flag"](batch["flags"].reshape(-1, 1))
        x = parts["both"](parts["marked"](x).relu()).relu()
        x = parts["recover"](x).reshape(n_cells, n_genes, h)
        x = (x[..., None] * w1).sum(2) + b1
        cross = parts["cross"](x[..., 0])[:, None].expand(-1, n_genes, -1)
        return (torch.cat([x, cross], 2) * w2).sum(2) + b2 + batch["x"]

    def backward() -> None:
        prediction, total = forward(), 0.0
        names = batch["condition"].unique()
        for name in names:
            rows = batch["condition"] == name
            p, y = prediction[rows], batch["y"][rows]
            total = total + ((p - y) ** 4).mean() + 0.1 * ((y - control).sign() - (p - control).sign()).pow(2).mean()
        (total / len(names)).backward()

    def update() -> None:
        nn.utils.clip_grad_value_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    timing = bench_step._repeat(lambda _: backward(), None, seconds)[0]
    return timing, bench_step._repeat(lambda _: (backward(), update())[1], None, seconds)[0]["s"] - timing["s"]


def torch_deepsem(batch: Any, start: np.ndarray, turn: int, seconds: float) -> dict[str, float]:
    """Return the timing of the same update in torch."""
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)
    n, h = len(start), 128
    x, mask = (torch.from_numpy(batch[name]) for name in ("x", "mask"))
    adjacency, one = nn.Parameter(torch.from_numpy(start.copy())), torch.eye(n)

    def two(i: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(i, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh())

    def prior() -> nn.Sequential:
        return nn.Sequential(nn.Linear(1, h), nn.Tanh(), nn.Linear(h, n))

    encode, mean_of, variance_of = two(2), nn.Linear(h, 1), nn.Linear(h, 1)
    decode, prior_mean, prior_variance = nn.Sequential(two(1), nn.Linear(h, 1)), prior(), prior()
    networks = nn.ModuleList([encode, mean_of, variance_of, decode, prior_mean, prior_variance])
    adjacency.requires_grad = turn == 1
    rule = functools.partial(torch.optim.RMSprop, lr=1e-4)
    optimizer = rule([adjacency]) if turn else rule(networks.parameters())

    def density(z: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        variance = log_variance.exp() + 1e-8
        return -0.5 * (np.log(2 * np.pi) + variance.log() + (z - mean) ** 2 / variance)

    def step() -> None:
        optimizer.zero_grad()
        matrix = one - (adjacency * (1 - one)).T
        inverse = torch.inverse(matrix)
        hidden = encode(torch.stack([x, torch.ones_like(x)], -1))
        mean, log_variance = mean_of(hidden)[..., 0] @ matrix, variance_of(hidden)[..., 0] @ matrix
        z = mean + torch.randn_like(mean) * (log_variance.exp() + 1e-10).sqrt()
        back = decode((z @ inverse)[..., None])[..., 0]
        y = torch.ones(len(x), 1)
        divergence = density(z, mean, log_variance) - density(z, prior_mean(y) @ matrix, prior_variance(y) @ matrix)
        loss = (mask * (x - back) ** 2).sum() / mask.sum() + 0.01 * divergence.mean() + 0.1 * adjacency.abs().mean()
        loss.backward()
        optimizer.step()

    return bench_step._repeat(lambda _: step(), None, seconds)[0]
