"""Sizes of sCT: small ones of ours, the paper's and that of the published weights, which differ in options."""

SMALL = dict(num_downsamples=5, token_dim=32, embed_dim=256, ffn_dim=512, num_layers=2, num_heads=4)
SMALL |= {"cells": "positions", "pos": "none", "mlp_init": "truncated"}  # why: configs/pretrain_sct.py
PUBLISHED = dict(num_downsamples=8, token_dim=64, embed_dim=1024, ffn_dim=2048, num_layers=4, num_heads=16)
PUBLISHED |= {"mlp_init": "truncated", "cell_chunk": 10}
VARIANTS = {
    "tiny": {"model": dict(SMALL, num_downsamples=3, embed_dim=64, ffn_dim=96, num_layers=1, key_size=16)},
    "small": {"model": dict(SMALL)},
    "paper": {"model": dict(PUBLISHED, pooling="max", pos="none"), "inputs": {"score_unmeasured": True}},
    "published": {"model": dict(PUBLISHED), "inputs": {"score_unmeasured": True}},
}
