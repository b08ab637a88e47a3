"""CellPLM's embedding and annotation in PyTorch, restated from the paper's formulas to be timed beside ours.

Cells are a sparse matrix of the genes of their file, as in the original, so that its first product costs little.
"""

from typing import Any

import numpy as np


def annotator(genes: int, types: int) -> Any:
    """Return the network, of the published sizes."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """Flow attention over all cells, then a layer of twice the width, each behind a norm."""

        def __init__(self, width: int, heads: int, dropout: float):
            super().__init__()
            self.heads, self.drop = heads, nn.Dropout(dropout)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.wide, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return what the block makes of cells. [N, D]"""
            y = self.norms[0](x)
            x = x + self.drop(self.out(self.attend(self.query(y), self.key(y), self.value(y))))
            y = self.wide(self.norms[1](x))
            return x + self.drop(self.back(self.drop(nn.functional.gelu(y))))

        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
            """Return flow attention: competition among keys, allocation among queries. [N, D] each"""
            n, width = q.shape
            q, k, v = (x.view(n, self.heads, -1).transpose(0, 1) for x in (q, k, v))  # [H, N, K]
            q, k = q.sigmoid(), k.sigmoid()
            incoming = 1 / ((q + eps) @ (k.sum(1) + eps)[..., None])
            outgoing = 1 / ((k + eps) @ (q.sum(1) + eps)[..., None])
            sink = (q + eps) @ ((k * outgoing).sum(1) + eps)[..., None]
            source = ((k + eps) @ ((q * incoming).sum(1) + eps)[..., None]).clamp(-1, 1)
            values = k.transpose(1, 2) @ (v * source.softmax(1) * n)
            return (sink.sigmoid() * ((q * incoming) @ values)).transpose(0, 1).reshape(n, width)

    class Annotator(nn.Module):
        """Embedder, encoder, mixture latent, head of two layers: the published sizes by default."""

        def __init__(
            self,
            genes: int,
            types: int,
            width: int = 1024,
            layers: int = 4,
            heads: int = 8,
            latent: int = 512,
            clusters: int = 16,
            dropout: float = 0.2,
        ):
            super().__init__()
            self.table = nn.Parameter(0.005 * torch.randn(genes, width))
            self.first, self.drop, self.norm = nn.Linear(width, width), nn.Dropout(dropout), nn.GroupNorm(4, width)
            self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
            self.last, self.cluster = nn.LayerNorm(width), nn.Linear(width, clusters)
            self.hidden = nn.Linear(width + clusters, 512)
            self.mean, self.variance = nn.Linear(512, latent), nn.Linear(512, latent)
            self.head = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(width))
            self.types = nn.Linear(width, types)

        def embed(self, counts: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
            """Return the latents of cells, sparse log1p counts of some of the genes. [N, G], [G] -> [N, Z]"""
            x = torch.sparse.mm(counts, self.table[genes])
            x = self.norm(self.drop(torch.relu(self.first(x))))
            for block in self.blocks:
                x = block(x)
            x = self.last(x)
            logits = self.cluster(x)
            if self.training:
                share = nn.functional.gumbel_softmax(logits)
            else:
                share = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
            hidden = torch.relu(self.hidden(torch.cat([x, share], 1)))
            if not self.training:
                return self.mean(hidden)
            deviation = (nn.functional.softplus(self.variance(hidden)) + 1e-10).sqrt()
            return self.mean(hidden) + torch.randn_like(deviation) * deviation

        def forward(self, counts: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
            """Return scores of the types. [N, T]"""
            return self.types(self.head(self.embed(counts, genes)))

    return Annotator(genes, types)


def sparse(genes: np.ndarray, counts: np.ndarray, n_genes: int) -> Any:
    """Return log1p counts as a sparse matrix, padding left out. [N, P], [N, P] -> [N, n_genes]"""
    import torch

    rows, columns = np.nonzero(counts)
    index = torch.tensor(np.stack([rows, genes[rows, columns]]))
    values = torch.tensor(np.log1p(counts[rows, columns]), dtype=torch.float32)
    return torch.sparse_coo_tensor(index, values, (len(genes), n_genes)).coalesce()
