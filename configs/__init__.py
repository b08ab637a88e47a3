"""One file, one runnable claim: `--config=configs/pretrain_cellplm.py:tiny`."""
