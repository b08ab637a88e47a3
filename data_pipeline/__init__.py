"""The host side: files in, batches of raw sparse counts out. numpy, anndata, tensorstore, grain; never jax.

`h5ad.read_counts` -> `vocab.map_genes` -> `store.write_study` -> `loader.Loader`.
"""
