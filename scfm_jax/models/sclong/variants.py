"""Sizes of scLong: small ones of ours, the paper's and that of the published weights, which differ in options."""

SMALL = dict(base_dim=64, mini_heads=2, mini_depth=1, large_depth=3, large_heads=4, large_dim=128, dec_heads=2)
VARIANTS = {
    "tiny": {
        "model": dict(
            top_seq_len=128, base_dim=32, mini_depth=1, mini_heads=2, mini_key_size=16, large_dim=48, large_depth=2,
            large_heads=2, large_key_size=16, dec_depth=1, dec_heads=2, dec_key_size=16, graph=False,
        ),
    },
    "small": {"model": dict(SMALL, top_seq_len=1024, dec_depth=1, graph=False)},
    "paper": {
        "model": dict(
            head="gene", head_init="fan_in", gene_table=False, readd=False, expression_norm=False, pad_token=False,
        ),
        "inputs": {"replace_rate": 1.0},
        "loss": {"average": "cells"},
    },
    "published": {"model": {}},
}  # fmt: skip
