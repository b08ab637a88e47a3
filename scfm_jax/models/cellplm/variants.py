"""Sizes of CellPLM: a small one of ours, the paper's and those of the published weights.

The paper gives sizes (5, 10, 40 million) but no widths; those of `paper_*` are chosen to land within 10 % of them.
"""

from typing import Any

TINY = dict(enc_hid=64, enc_layers=2, enc_head=4, latent_dim=32, num_clusters=8, dec_hid=64, dropout=0.1)
PAPER = dict(enc_mod="performer", pe="sin", latent_mod="gmvae_paper", dec_mod="ff", enc_layers=4, enc_head=8)
PAPER_LOSS = {"objective": "mse"}
FIELD = {"coords": "field"}
PUBLISHED = dict(
    enc_mod="flowformer", enc_hid=1024, enc_layers=4, enc_head=8, latent_dim=512, dec_hid=1024, dec_layers=2,
    dropout=0.2, num_clusters=16, w_li=5.0, w_en=5.0, lamda=5.0, pe="none", cov_absent="sum",
)  # fmt: skip
PUBLISHED_INPUTS = dict(drop_node_rate=0.3, max_cells=4000)


def _paper(width: int, latent: int) -> dict[str, dict[str, Any]]:
    return {"model": dict(PAPER, enc_hid=width, dec_hid=width, latent_dim=latent), "inputs": FIELD, "loss": PAPER_LOSS}


VARIANTS = {
    "tiny": {"model": dict(TINY), "inputs": FIELD},
    "paper": _paper(192, 128),
    "paper_5m": _paper(96, 64),
    "paper_10m": _paper(192, 128),
    "paper_40m": _paper(640, 512),
    "published": {"model": dict(PUBLISHED, latent_mod="gmvae"), "inputs": PUBLISHED_INPUTS},
    "published_20230926": {"model": dict(PUBLISHED, latent_mod="gmvae"), "inputs": PUBLISHED_INPUTS},
    "published_20231027": {"model": dict(PUBLISHED, latent_mod="vae"), "inputs": PUBLISHED_INPUTS},
}
