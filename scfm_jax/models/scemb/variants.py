"""Sizes of scEMB: small ones of ours, the paper's, and that of the first Geneformer."""

TINY = dict(embed_dim=64, ffn_dim=128, num_layers=2, num_heads=4)
SMALL = dict(embed_dim=256, ffn_dim=512, num_layers=4, num_heads=4, attention_dropout=0.0)
GENEFORMER = dict(
    embed_dim=256, ffn_dim=512, num_layers=6, num_heads=4, activation="relu", n_positions=2048, dropout=0.02,
    attention_dropout=0.02,
)  # fmt: skip
GENEFORMER_INPUTS = {"position": "rank", "medians": "file", "target_sum": 1e4}
VARIANTS = {
    "tiny": {"model": TINY},
    "small": {"model": SMALL},
    "paper": {},
    "geneformer": {"model": GENEFORMER, "inputs": GENEFORMER_INPUTS},
}
