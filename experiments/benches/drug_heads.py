"""A training step of the heads on drugs beside PyTorch restatements of the same, on the same molecules.

  DeepCE   16 rows x 978 genes x 128, compounds of about 31 atoms
  DeepCDR  64 rows of 223 drugs in 100 lines, 706 genes x 200 numbers a line
  DeepDDS  256 pairs of 38 drugs in 31 lines, 954 genes x 200 numbers a line

Ours includes packing the batch's molecules. The restatements do what the published code does: every row has its
molecules and its line, DeepCDR's padded to 100 atoms; batches are made beforehand.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benches import step as bench_step
from scfm_jax.tasks import heads
from scfm_jax.tasks.drugs import deepcdr, deepce, deepdds
from scfm_jax.tasks.drugs.molecules import Library

ATOMS = 100
"""Rows of a molecule in DeepCDR's arrays."""


def cases(small: bool = False) -> dict[str, tuple[heads.Head, heads.Training, heads.Examples, dict[str, Any], Library]]:
    """Return (head, training, rows of one batch, shared arrays, library) of each head."""
    rng = np.random.default_rng(0)
    n_genes, width, shrunk = (20, 8, 4) if small else (978, 128, 1)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def rows(training: heads.Training, *most: int) -> list[np.ndarray]:
        return [rng.integers(0, number, training.rows // shrunk) for number in most]

    out = {}
    library, training = compounds(rng, 400, 62, 6), deepce.TRAINING
    (drug,) = rows(training, len(library))
    conditions = {name: np.eye(k)[rng.integers(0, k, len(drug))] for name, k in (("cell", 7), ("dose", 6))}
    examples = deepce.examples(library, drug, normal(len(drug), n_genes), **conditions)
    out["DeepCE"] = deepce.head(width=width), training, examples, {"genes": normal(n_genes, 64)}, library
    library, training = compounds(rng, 223, 75), deepcdr.TRAINING
    drug, line = rows(training, len(library), 100 // shrunk)
    shared = {"lines": normal(100 // shrunk, 706 // shrunk, 200 // shrunk)}
    examples = deepcdr.examples(library, drug, line, normal(len(drug)))
    out["DeepCDR"] = deepcdr.head(), training, examples, shared, library
    library, training = compounds(rng, 38, 78), deepdds.TRAINING
    first, second, line, y = rows(training, len(library), len(library), 31, 2)
    shared = {"lines": normal(31, 954 // shrunk, 200 // shrunk)}
    out["DeepDDS"] = deepdds.head(), training, deepdds.examples(library, first, second, line, y), shared, library
    return out


def compounds(rng: np.random.Generator, number: int, features: int, bonds: int = 0) -> Library:
    """Return molecules of 18 to 44 atoms in chains with branches."""
    n_atoms = rng.integers(18, 45, number)
    ends = [(i, max(i - 1 - (rng.random() < 0.3), 0)) for n in n_atoms for i in range(1, n)]
    edges = np.array([(a, b) for pair in ends for a, b in (pair, pair[::-1])])
    x = (rng.random((n_atoms.sum(), features)) < 0.1).astype(np.float32)
    kinds = (rng.random((len(edges), bonds)) < 0.3).astype(np.float32) if bonds else None
    return Library(x, n_atoms, edges, 2 * (n_atoms - 1), kinds)


def rows(seconds: float, torch_there: bool, small: bool = False) -> list[dict]:
    """Return rows of seconds a step, ours and torch's, with the ratio where torch is installed."""
    out = []
    for name, case in cases(small).items():
        ours = our_seconds(*case[:4], seconds)
        out.append({"part": f"{name}, {case[2].n} rows"} | ours)
        if torch_there:
            timing = torch_seconds(name, *case[2:], case[0].network, seconds)
            out.append({"part": "  torch"} | timing | {"times_ours": timing["s"] / ours["s"]})
    return out


def our_seconds(head: heads.Head, training: heads.Training, examples: Any, shared: Any, seconds: float) -> dict:
    """Return the timing of an update, the packing of its batch included."""
    shared, every = jax.device_put(shared), np.arange(examples.n)
    state = heads._begin(head, training, jnp.uint32(0), examples.take(every), shared)
    call = functools.partial(heads._batch, head, training, 0, True)
    step = lambda state: call(state, examples.take(every), shared, jnp.uint32(0), jnp.float32(1))[0]  # noqa: E731
    return bench_step._repeat(step, state, seconds)[0]


# --------------------------------------------------------------------------------------------------------------- torch


def torch_seconds(name: str, examples: Any, shared: Any, library: Library, network: Any, seconds: float) -> dict:
    """Return the timing of an update in torch."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    batch = examples.take(np.arange(examples.n))
    made = {"DeepCE": torch_deepce, "DeepCDR": torch_deepcdr, "DeepDDS": torch_deepdds}[name]
    module, loss, rate = made(torch, batch, shared, library, network)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return bench_step._repeat(lambda _: step(), None, seconds)[0]


def flat(torch: Any, library: Library, which: np.ndarray) -> tuple[Any, ...]:
    """Return (features, edges, weights, molecule of each atom) of molecules, one for each row, as torch's arrays."""
    graphs = library.pack(np.arange(len(library)), np.ones(len(library)), len(library) + 1)
    first, start, of_molecule = np.cumsum(graphs.n_node) - graphs.n_node, 0, []
    x, ends, weights = [], [], []
    owner = np.repeat(np.arange(len(graphs.n_node)), graphs.n_node)[graphs.receivers]
    for row, molecule in enumerate(which):
        along, n = owner == molecule, graphs.n_node[molecule]
        x.append(graphs.nodes["x"][first[molecule] : first[molecule] + n])
        ends.append(np.stack([graphs.senders, graphs.receivers])[:, along] - first[molecule] + start)
        weights.append(graphs.edges["weight"][along])
        of_molecule.append(np.full(n, row))
        start += n
    parts = (np.concatenate(x), np.concatenate(ends, 1), np.concatenate(weights), np.concatenate(of_molecule))
    return tuple(torch.from_numpy(part if part.dtype == np.float32 else part.astype(np.int64)) for part in parts)


def torch_deepdds(torch: Any, batch: Any, shared: Any, library: Library, network: Any) -> tuple[Any, Callable, float]:
    """Return DeepDDS' modules, its loss on a batch, and its learning rate."""
    nn = torch.nn
    sides = [flat(torch, library, batch[name]) for name in ("first", "second")]
    lines = torch.from_numpy(shared["lines"])[torch.from_numpy(batch["line"]).long()]  # [B, G, D], as it is published
    y, n = torch.from_numpy(batch["y"]).long(), len(batch["y"])

    def stack(*widths: int) -> list[Any]:
        return [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]

    convolutions = nn.ModuleList(stack(library.x.shape[1], *network.convolutions))
    drug, rest = nn.ModuleList(stack(network.convolutions[-1], *network.drug)), nn.Dropout(network.dropout)
    channels = nn.Linear(lines.shape[2], network.channels)
    line = nn.ModuleList(stack(network.channels * lines.shape[1], *network.line))
    joined = nn.ModuleList(stack(2 * network.drug[-1] + network.line[-1], *network.joined, 2))

    def vector(x: Any, ends: Any, weight: Any, owner: Any) -> Any:
        for layer in convolutions:
            x = torch.zeros(len(x), layer.out_features).index_add(
                0, ends[1], (x @ layer.weight.T)[ends[0]] * weight[:, None]
            )
            x = (x + layer.bias).relu()
        places = owner[:, None].expand(-1, x.shape[1])
        x = torch.zeros(n, x.shape[1]).scatter_reduce(0, places, x, "amax", include_self=False)
        return rest(drug[1](rest(drug[0](x).relu())))

    def loss() -> Any:
        x = channels(lines).relu().flatten(1)
        for i, layer in enumerate(line):
            x = layer(x.relu() if i else x)
        drugs = [vector(*side) for side in sides]
        total = 0.0
        for one, other in (drugs, drugs[::-1]):
            z = torch.cat([one, other, x], 1)
            for layer in joined[:-1]:
                z = rest(layer(z).relu())
            total = total + joined[-1](z) / 2
        return nn.functional.cross_entropy(total, y)

    return nn.ModuleList([convolutions, drug, channels, line, joined]), loss, 1e-4


def torch_deepcdr(torch: Any, batch: Any, shared: Any, library: Library, network: Any) -> tuple[Any, Callable, float]:
    """Return DeepCDR's modules, its loss on a batch, and its learning rate."""
    nn = torch.nn
    n, lines = len(batch["y"]), torch.from_numpy(shared["lines"])[torch.from_numpy(batch["line"]).long()]
    x, ends, weight, owner = flat(torch, library, batch["drug"])
    place = torch.cat([torch.arange(k) for k in torch.bincount(owner)])
    atoms = torch.zeros(n, ATOMS, x.shape[1])
    atoms[owner, place] = x
    near = torch.eye(ATOMS).repeat(n, 1, 1)
    near[owner, place, place] = 0
    near[owner[ends[1]], place[ends[1]], place[ends[0]]] = weight
    y, drop = torch.from_numpy(batch["y"]), nn.Dropout(network.dropout)
    widths = (atoms.shape[2], *network.graph_widths)
    convolutions = nn.ModuleList([nn.Linear(i, o) for i, o in itertools.pairwise(widths)])
    norms = nn.ModuleList([nn.BatchNorm1d(o, eps=1e-3, momentum=0.01) for o in network.graph_widths])
    reduce, tower = nn.Linear(lines.shape[2], 1), nn.ModuleList([nn.Linear(lines.shape[1], 256), nn.Linear(256, 100)])
    tower.append(nn.BatchNorm1d(256, eps=1e-3, momentum=0.01))
    joined, out = nn.Linear(200, 300), nn.Linear(30, 1)
    along = nn.ModuleList([nn.Conv1d(1, 30, 150), nn.Conv1d(30, 10, 5), nn.Conv1d(10, 5, 5)])

    def loss() -> Any:
        x = atoms
        for layer, norm in zip(convolutions, norms, strict=True):
            x = (near @ layer(x)).relu() if layer.out_features < layer.in_features else layer(near @ x).relu()
            x = drop(norm(x.flatten(0, 1)).reshape(x.shape))
        of_line = drop(tower[2](tower[0](reduce(lines)[..., 0]).tanh()))
        z = torch.cat([x.mean(1), tower[1](of_line).relu()], 1)
        z = drop(joined(z).tanh())[:, None]
        for layer, pool in zip(along, (2, 3, 3), strict=True):
            z = nn.functional.max_pool1d(layer(z).relu(), pool)
        z = out(nn.functional.dropout(drop(z).flatten(1), 0.2))[:, 0]
        return ((z - y) ** 2).mean()

    return nn.ModuleList([convolutions, norms, reduce, tower, joined, out, along]), loss, 1e-3


def torch_deepce(torch: Any, batch: Any, shared: Any, library: Library, network: Any) -> tuple[Any, Callable, float]:
    """Return DeepCE's modules, its loss on a batch, and its learning rate."""
    nn = torch.nn
    width, levels = network.width, len(network.graph_widths)
    x, ends, _, owner = flat(torch, library, batch["drug"])
    ends = ends[:, ends[0] != ends[1]]
    bonds = torch.zeros(len(x), library.bond.shape[1]).index_add(
        0, ends[1], (torch.rand(ends.shape[1], library.bond.shape[1]) < 0.3).float()
    )
    degree = torch.bincount(ends[1], minlength=len(x))
    of_degree = [torch.nonzero(degree == d)[:, 0] for d in range(1, 6)]
    place = torch.cat([torch.arange(k) for k in torch.bincount(owner)])
    n, most = len(batch["y"]), int(place.max()) + 1
    mask = torch.zeros(n, 1, 1, most, dtype=torch.bool)
    mask[owner, 0, 0, place] = True
    genes, y, drop = torch.from_numpy(shared["genes"]), torch.from_numpy(batch["y"]), nn.Dropout(network.dropout)
    conditions = [torch.from_numpy(batch[name]) for name in ("cell", "dose")]
    sizes = (x.shape[1], *network.graph_widths)
    selves = nn.ModuleList([nn.Linear(i, o) for i, o in itertools.pairwise(sizes)])
    by_degree = nn.ModuleList(
        nn.ModuleList([nn.Linear(sizes[i] + bonds.shape[1], sizes[i + 1], bias=False) for _ in of_degree])
        for i in range(levels)
    )
    norms = nn.ModuleList([nn.BatchNorm1d(o, affine=False) for o in network.graph_widths])
    outs = nn.ModuleList([nn.Linear(size, width) for size in sizes])
    embed, last = nn.Linear(genes.shape[1], width), nn.Linear(width, width)
    blocks = nn.ModuleList()
    for _ in range(network.layers):
        attention = [nn.ModuleList([nn.Linear(width, width) for _ in range(4)]) for _ in range(2)]
        rest = [nn.Linear(2 * width, width), nn.Linear(width, network.feedforward)]
        blocks.append(nn.ModuleList([*attention, *rest, nn.Linear(network.feedforward, width), nn.LayerNorm(width)]))
    of_condition = nn.ModuleList([nn.Linear(c.shape[1], network.condition) for c in conditions])
    one = nn.Linear(2 * width + len(conditions) * network.condition, network.hidden)
    two = nn.Linear(network.hidden, 1)

    def attend(part: Any, queries: Any, keys: Any, kept: Any) -> Any:
        def heads_of(x: Any) -> Any:
            return x.reshape(*x.shape[:2], network.heads, -1).transpose(1, 2)

        q, k, v = (heads_of(layer(x)) for layer, x in zip(part[:3], (queries, keys, keys), strict=True))
        energy = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        energy = energy if kept is None else energy.masked_fill(~kept, -1e10)
        return part[3]((drop(energy.softmax(-1)) @ v).transpose(1, 2).flatten(2))

    def loss() -> Any:
        h, total = x, outs[0](x).softmax(1)
        for i in range(levels):
            near = torch.cat([torch.zeros_like(h).index_add(0, ends[1], h[ends[0]]), bonds], 1)
            summed = selves[i](h)
            for layer, atoms in zip(by_degree[i], of_degree, strict=True):
                summed = summed.index_add(0, atoms, layer(near[atoms]))
            h = norms[i](summed).relu()
            total = total + outs[i + 1](h).softmax(1)
        atoms = torch.zeros(n, most, width).index_put((owner, place), total)
        g = embed(genes)[None].repeat(n, 1, 1)
        for across, among, fc, first, second, norm in blocks:
            both = torch.cat([attend(across, g, atoms, mask), attend(among, g, g, None)], 2)
            g = norm(g + drop(fc(both).relu()))
            g = norm(g + drop(second(drop(first(g).relu()))))
        rest = [atoms.sum(1), *(layer(c) for layer, c in zip(of_condition, conditions, strict=True))]
        rest = torch.cat(rest, 1)[:, None].expand(-1, len(genes), -1)
        z = two(one(torch.cat([last(g), rest], 2).relu()).relu())[..., 0]
        return ((z - y) ** 2).mean()

    modules = [selves, by_degree, norms, outs, embed, last, blocks, of_condition, one, two]
    return nn.ModuleList(modules), loss, 2e-4
