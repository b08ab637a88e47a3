"""Downstream tasks, one file each: predict, score, and the simple baselines every score is shown beside.

embedding            cell types among neighbours and clusters
marker_genes         genes particular to a cell type, and the known markers among them
gene_imputation, cell_imputation, fixed_gene_imputation     hidden counts; `imputation` is what they share, with
  bins (counts to bins and back), imputation_baselines, and imputer, which asks the `impute` of a model's file
denoising            what spoiled counts were: thinned, or with flips to zero
spatial_imputation   genes that a spatial study lacks, with single cells as reference
integration          do batches mix and types stay together: the scIB metrics
"""
