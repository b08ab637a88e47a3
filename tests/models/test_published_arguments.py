"""Every argument of the authors' constructors is known by its own name: mapped, without an effect, or refused."""

from typing import Any

import pytest

from scfm_jax import models

NEEDED = {
    "cellplm": dict(
        gene_list=["A", "B"], enc_mod="flowformer", enc_hid=32, enc_layers=2, post_latent_dim=16, dec_mod="nbmlp",
        dec_hid=32, dec_layers=2, out_dim=2,
    ),
    "exceiver": dict(seq_len=9, seq_dim=8, query_len=4, query_dim=8),
    "scemb": dict(
        vocab_size=12, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    ),
    "sclong": dict(max_seq_len=10),
    "sct": dict(
        alphabet_size=7, pad_token_id=6, mask_token_id=5, num_downsamples=2, attention_heads=4, token_embed_dim=32,
        embed_dim=64, ffn_embed_dim=96, num_layers=2, use_skip_connection=True,
    ),
}  # fmt: skip
"""What each constructor cannot do without."""
OTHER: dict[str, dict[str, Any]] = {
    "cellplm": dict(
        gene_list=["A"], enc_mod="performer", enc_hid=64, enc_layers=3, post_latent_dim=8, dec_mod="mlp", dec_hid=8,
        dec_layers=1, batch_num=3, dataset_num=2, platform_num=2, mask_type="hidden", model_dropout=0.3,
        activation="relu", norm="groupnorm", enc_head=2, mask_node_rate=0.7, mask_feature_rate=0.2, drop_node_rate=0.1,
        max_batch_size=7, cat_dim=3, conti_dim=3, pe_type="learned", cat_pe=True, gene_emb=None, latent_mod="gmvae",
        w_li=2.0, w_en=2.0, w_ce=2.0, head_type="embedder", dsbn=True, ecs=True, dar=True, input_covariate=True,
        num_clusters=5, dae=False, lamda=0.1, mask_beta=True, objective="imputation",
    ),
    "exceiver": dict(
        seq_len=8, seq_dim=4, query_len=5, query_dim=4, classify_dim=3, num_layers=2, nhead=2, dim_feedforward=16,
        dropout=0.1, learning_rate=1.0, weight_decay=1.0, warmup_steps=1,
    ),
    "scemb": dict(
        vocab_size=13, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=8,
        hidden_act="relu", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, max_position_embeddings=16,
        type_vocab_size=1, initializer_range=1.0, layer_norm_eps=1e-5, pad_token_id=3,
        position_embedding_type="relative_key", use_cache=False, classifier_dropout=0.5, is_decoder=True,
        add_cross_attention=True, chunk_size_feed_forward=2, tie_word_embeddings=False,
    ),
    "sclong": dict(
        max_seq_len=11, top_seq_len=5, base_dim=16, mini_enc_depth=3, mini_enc_heads=2, mini_enc_dim_head=32,
        large_dim=32, large_enc_depth=3, large_enc_heads=2, large_enc_dim_head=32, dec_depth=3, dec_heads=2,
        dec_dim_head=32, mask_token_thres=-2, local_attn_heads=1, local_window_size=8, causal=True, ff_mult=2,
        nb_features=16, feature_redraw_interval=10, reversible=True, ff_chunks=2, ff_glu=True, emb_dropout=0.1,
        ff_dropout=0.1, attn_dropout=0.1, generalized_attention=True, kernel_fn="ELU", use_scalenorm=True,
        use_rezero=True, cross_attend=True, no_projection=True, g2v_position_emb=False, auto_check_redraw=False,
        qkv_bias=True, G_go=None, G_go_weight=None, go_num_layers=2, device="cpu", go_use_gene2vec=False,
        gene2vec_file="x.npy",
    ),
    "sct": dict(
        alphabet_size=17, pad_token_id=5, mask_token_id=4, num_downsamples=3, attention_heads=2, key_size=8,
        token_embed_dim=64, embed_dim=128, ffn_embed_dim=64, num_layers=3, layer_norm_eps=1e-6,
        interpolation_method="linear", max_positions=9, num_cells=3, num_hidden_layers_head=2,
        use_skip_connection=False, use_gradient_checkpointing=True, embeddings_layers_to_save=[1],
        attention_maps_to_save=[[1, 0]], use_spatial_information=True, num_scales=5, sigma_min=2.0, sigma_max=5.0,
    ),
}  # fmt: skip
"""Another value for every argument of the constructors: OmicsFormer (CellPLM), Exceiver and ExceiverClassifier,
BertConfig (scEMB), DualEncoderSCFM (scLong), sCTConfig."""
REFUSED = {
    "cellplm": {"mask_type", "cat_pe", "dsbn", "ecs", "dar"},
    "exceiver": set(),
    "scemb": {"pad_token_id", "position_embedding_type", "is_decoder", "add_cross_attention", "tie_word_embeddings"},
    "sclong": {
        "mask_token_thres", "local_attn_heads", "causal", "ff_mult", "nb_features", "reversible", "ff_glu", "kernel_fn",
        "emb_dropout", "ff_dropout", "attn_dropout", "use_scalenorm", "use_rezero", "cross_attend", "no_projection",
        "go_use_gene2vec",
    },
    "sct": {"alphabet_size", "pad_token_id", "mask_token_id", "layer_norm_eps"},
}  # fmt: skip
"""Arguments whose other value has no counterpart here (sCT's ids: mask and padding must be the last two)."""
SIZES = {"cellplm": {"out_dim"}}
"""Arguments that are the length of another one."""


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, other in OTHER.items() for key in other])
def test_an_argument_is_mapped_or_named(name, key):
    published, value = models.published(name), OTHER[name][key]
    assert set(NEEDED[name]) <= set(OTHER[name]) | SIZES.get(name, set())
    plain = published.config(NEEDED[name])
    if key in REFUSED[name]:
        with pytest.raises(ValueError, match=rf"^published config: .*{key}=.*only") as error:
            published.config(NEEDED[name] | {key: value})
        assert "\n" not in str(error.value)
    else:
        changed = published.config(NEEDED[name] | {key: value}) != plain
        assert changed != (key in published.IGNORED), f"{key}={value!r} is ignored, and nobody says so"


@pytest.mark.parametrize("name", sorted(OTHER))
def test_what_is_imported_are_fields_of_the_model(name):
    module, settings = models.get(name), models.published(name).config(NEEDED[name])
    assert set(settings["model"]) <= set(models.defaults(module, "model"))
    assert set(settings["inputs"]) <= set(models.defaults(module, "inputs"))


def test_an_argument_that_no_constructor_has_is_named():
    with pytest.raises(ValueError, match=r"graph_layers: the constructor's arguments are .*go_num_layers"):
        models.published("sclong").config({"graph_layers": 2})
    with pytest.raises(ValueError, match=r"latent_mod='split': only 'gmvae', 'vae'"):
        models.published("cellplm").config(NEEDED["cellplm"] | {"latent_mod": "split"})
