"""Sizes of Exceiver: small ones of ours, the paper's and those of the published weights.

The paper's results are of a model with labels; the released weights are one without (8 layers) and one with (1 layer).
Those of ours read values and not just their signs (`value_scale`). They do not start at each gene's mean (`gene_bias`):
from there the latents hardly learn (numbers in `configs/compare_budget.py`). A head that starts positive is of all but
the published ones: the last weight of both released heads is negative (-53), so they did not start so.
"""

PUBLISHED = dict(seq_dim=4, query_len=128, query_dim=4, num_layers=8, num_heads=4, ffn_dim=2048)
OURS = dict(positive_head=True, value_scale="after_norm")
AS_TRAINED = dict(zero_mask="additive_one", mask_token="zero")
VARIANTS = {
    "tiny": {"model": dict(seq_dim=8, query_len=16, query_dim=8, num_layers=1, num_heads=4, ffn_dim=64, **OURS)},
    "small": {"model": dict(seq_dim=32, query_len=64, query_dim=32, num_layers=2, num_heads=4, ffn_dim=256, **OURS)},
    "paper": {"model": dict(PUBLISHED, num_layers=1, class_token_in_encoder=True, positive_head=True)},
    "published": {"model": dict(PUBLISHED, **AS_TRAINED), "inputs": {"scaler": "per_split"}},
    "published_classifier": {
        "model": dict(PUBLISHED, num_layers=1, n_classes=24, **AS_TRAINED),
        "inputs": {"scaler": "per_split"},
    },
}
