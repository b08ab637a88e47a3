"""Install scfm_jax: five single-cell foundation models, one JAX training stack."""

from setuptools import find_packages, setup

REQUIRES = [
    "jax>=0.10.2",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.28,<1",  # 1.0 has another API under the same names
    "jraph>=0.0.6.dev0",
    "numpy>=2.0",
    "scipy>=1.14",
    "pandas>=2.2",
    "anndata>=0.12,<0.15",  # 0.14 writes text with missing values in a way of its own
    "zarr>=3.0",
    "numcodecs>=0.16.6,!=0.17.0",  # the others unpickle what a file asks them to; such files are refused here too
    "tensorstore>=0.1.70",
    "ml-collections>=1.0",
    "absl-py>=2.1",
    "grain>=0.2.12",
    "dask[distributed]>=2025.1",
    "scanpy>=1.11",
    "scikit-learn>=1.5",
    "graspologic-native>=1.3",  # Leiden, under the MIT licence
    "matplotlib>=3.9",
    "seaborn>=0.13",
    "google-crc32c>=1.5",
    "safetensors>=0.5",
    "tensorboard>=2.17",
    "tqdm>=4.66",
    "psutil>=5.9",
]

EXTRAS = {
    "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9", "tiledbsoma>=1.15", "rdkit>=2024.3"],
    "chem": ["rdkit>=2024.3"],
    "convert": ["torch>=2.2"],
    "census": ["cellxgene-census>=1.17", "tiledbsoma>=1.15"],
    "bench": ["torch>=2.2", "transformers>=4.48"],
    "harmony": ["harmonypy>=2.0"],
    "scvi": ["scvi-tools>=1.3"],
    "wandb": ["wandb>=0.18"],
    "notebook": ["jupyterlab>=4.2", "ipykernel>=6.29"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],  # mkdocs 2 has no plugins
    "cuda12": ["jax[cuda12]>=0.10.2"],
    "cuda13": ["jax[cuda13]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
}

setup(
    name="scfm_jax",
    version="0.1.0",
    description="Single-cell foundation models in one JAX/Flax training stack",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["scfm_jax*", "data_pipeline*", "configs*", "experiments*"]),
    package_data={"scfm_jax.pretrained": ["*.safetensors", "*.md"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["scfm = experiments.__main__:main"]},
)
