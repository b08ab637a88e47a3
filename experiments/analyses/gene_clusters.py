"""Cluster a model's gene vectors and test the clusters, beside a random twin and the data: table, picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import sparse

from data_pipeline.genes import edge_lists, gene_sets
from experiments.analyses import cells as model_cells
from experiments.pages import figures, names, output
from scfm_jax.api import Run
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.genes import gene_clusters as task
from scfm_jax.training import pace

LEVEL = 0.05
TOP_SETS = 3
COMPONENTS = 50


def evaluate(
    run: Run,
    *,
    edges: str | None = None,
    sets: Sequence[str] = (),
    source: Any = None,
    vectors: str = "auto",
    min_expressed: float = 0.05,
    cells: int = 200,
    neighbours: int = 15,
    resolution: float = 1.0,
    draws: int = 1000,
    seeds: int = 3,
    gene_table: Sequence[str] = (),
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return, for each kind of vectors and seed, the clusters and what interactions and gene sets say of them.

    Args:
      edges: file of protein interactions, any that `genes.edge_lists` reads; sets: GMT files. One is needed.
      source: cells; then only genes are clustered that a share `min_expressed` of them express, the null exchanges
        genes of like expression, and a baseline without a model is added: loadings of 50 principal components of the
        genes' standardised expression.
      vectors: "table" (the model's own), "graph" (what its graph convolution makes of a table), "mean" (its gene
        representations, the mean over at most `cells` cells of the source), "auto": the first of these that it has.
      seeds: of Leiden, the null and the twin's weights.
      options: of `model_cells.read` and `Run.gene_representations`.

    Raises:
      ValueError, OSError: a file that is not what it should be, a model without vectors; in one line.
    """
    if not edges and not sets:
        raise ValueError("--edges and --sets are both missing: give interactions, gene sets, or both to test with")
    if vectors not in ("auto", "table", "graph", "mean") or (vectors == "mean" and source is None):
        raise ValueError(f"--vectors={vectors}: auto, table, graph, or with --input mean")
    if vectors == "auto":
        vectors = next(iter(task.kinds(run)), "mean")
    if vectors == "mean" and source is None:
        raise ValueError(
            f"--input is missing: {run.name} has no table of gene vectors, so cells are needed to average over"
        )
    name_table = run.gene_table(gene_table)
    data = _read(run, source, gene_table, options, say) if source is not None else None
    chosen, level = _expressed(data, min_expressed) if data else (np.arange(len(run.genes)), None)
    names = data.symbols if data else list(run.genes)
    network = _network(edges, names, run.genes, name_table, chosen, say) if edges else None
    member = _members(sets, names, run.genes, name_table, chosen, say) if sets else None
    rows: list[dict[str, Any]] = []
    for seed in pace.counted(range(seeds), "clustered with seed", say):
        spaces = {}
        for name, model in ((run.name, run), ("random twin", run.twin(seed))):
            if vectors != "mean":
                parts = (len(run.genes), vectors, model.model, model.constants)
                spaces[name] = task.vectors(run.name, model.variables, *parts)[chosen]
            else:
                tell = say if seed == 0 and model is run else lambda _: None
                spaces[name] = _means(model, source, data, chosen, cells, seed, gene_table, options, tell)
        if data:
            expression = log_normalised(data.counts[:, chosen])
            spaces["expression PCA"] = features.components(expression, seed=seed, width=COMPONENTS)
        for name, x in pace.counted(spaces.items(), "tested vectors", say):
            cluster = task.clusters(x, neighbours=neighbours, resolution=resolution, seed=seed)
            row = {"vectors": name, "seed": seed, "clusters": int(cluster.max()) + 1, "cluster": cluster}
            if network:
                bins = task.alike(network["degree"], *([] if level is None else [level]))
                row["interactions"] = task.interactions(cluster, *network["ends"], bins, draws=draws, seed=seed)
            if member is not None:
                row["sets"] = task.sets(cluster, member["matrix"])
            rows.append(row)
    return {
        "model": run.name,
        "weights": run.source,
        "vectors": vectors,
        "input": data.name if data else None,
        "edges": network and {"file": str(edges), "number": len(network["ends"][0])},
        "sets": member and {"files": [str(file) for file in sets], "names": member["names"]},
        "draws": draws,
        "genes": [names[i] for i in chosen],
        "rows": rows,
    }


def _read(run: Run, source: Any, tables: Sequence[str], options: Mapping[str, Any], say: Callable[[str], None]):
    read_options = {name: options[name] for name in ("layer", "raw", "round", "min_mapped") if name in options}
    return model_cells.read(run, source, gene_table=tables, say=say, **read_options)


def _expressed(data: model_cells.ModelCells, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the genes that a share of the cells express [K], and their mean expression [K]."""
    share = np.asarray((data.counts > 0).mean(0)).ravel()
    chosen = np.flatnonzero((share >= least) & (share > 0))
    if len(chosen) < 100:
        raise ValueError(
            f"{len(chosen)} genes are expressed in {least:.0%} of the cells: too few to cluster; lower --min_expressed"
        )
    return chosen, np.asarray(log_normalised(data.counts).mean(0)).ravel()[chosen]


def _network(path, names, genes, table, chosen, say) -> dict[str, Any]:
    """Return the ends of the edges among the chosen genes, and how many each gene has."""
    listed = edge_lists.read_edges(path)
    (source, target, _), mapping = max(
        (edge_lists.on_genes(listed, list(n), table, min_mapped=None) for n in _namings(names, genes)),
        key=lambda pair: pair[1].report.mapped,
    )
    place = np.full(len(genes), -1)
    place[chosen] = np.arange(len(chosen))
    source, target = place[source], place[target]
    kept = (source >= 0) & (target >= 0) & (source != target)
    source, target = np.unique(np.sort(np.stack([source[kept], target[kept]]), axis=0), axis=1)
    if len(source) < 100:
        raise ValueError(f"{path}: {len(source)} edges among the {len(chosen)} genes: too few; give a --gene_table?")
    say(f"{path}: {len(source):,} edges among {len(chosen):,} genes; {mapping.report}")
    return {"ends": (source, target), "degree": np.bincount(np.append(source, target), minlength=len(chosen))}


def _members(paths, names, genes, table, chosen, say) -> dict[str, Any]:
    """Return names of the sets, and which of the chosen genes are in each."""
    named = {name: members for path in paths for name, members in gene_sets.read_gmt(path).items()}
    matrix, mapping = max(
        (gene_sets.on_genes(named, list(n), table) for n in _namings(names, genes)),
        key=lambda pair: pair[1].report.mapped,
    )
    say(f"{len(named):,} gene sets; {mapping.report}")
    return {"names": list(named), "matrix": sparse.csr_matrix(matrix[:, chosen])}


def _namings(names: Sequence[str], genes: Sequence[str]) -> list[Sequence[str]]:
    """Return the lists of unique names that the genes may be looked for by: the file's symbols, the model's own."""
    return [n for n in (names, genes) if len(set(n)) == len(n)]


def _means(run, source, data, chosen, cells, seed, tables, options, say) -> np.ndarray:
    """Return the mean representation of each chosen gene over some cells; zeros where the model was never given it."""
    rows = np.sort(np.random.default_rng(seed).permutation(data.counts.shape[0])[:cells])
    genes = run.gene_representations(source, rows=rows, gene_table=tables, seed=seed, say=say, **options)
    values, _ = genes.mean_of(np.ones((len(rows), 1), bool))
    table = np.zeros((len(run.genes), genes.width), np.float32)
    table[genes.ids] = np.nan_to_num(values[0])
    return table[chosen]


def summary(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the table of one kind of vectors and one seed."""
    sizes = np.bincount(row["cluster"])
    numbers = {"clusters": row["clusters"], "tested": int((sizes >= 3).sum())}
    if "interactions" in row:
        tests = row["interactions"]
        numbers["rich"] = int((tests["q"] < LEVEL).sum())
        numbers["ratio"] = float(tests["total"] / max(tests["total_expected"], 1e-9))
        numbers["total_p"] = float(tests["total_p"])
    if "sets" in row:
        hits = row["sets"]["q"] < LEVEL
        numbers["with_set"] = len(np.unique(row["sets"]["cluster"][hits]))
        numbers["set_pairs"] = int(hits.sum())
    return numbers


def table(found: Mapping[str, Any]) -> str:
    """Return the scores as Markdown, a line for each kind of vectors: means over seeds."""
    head = ["gene vectors", "clusters", "of 3 genes or more"]
    columns = [("clusters", 0), ("tested", 0)]
    if found["edges"]:
        head += ["rich in interactions", "edges within / null", "p"]
        columns += [("rich", 1), ("ratio", 2), ("total_p", 4)]
    if found["sets"]:
        head += ["with a gene set", "cluster-set pairs"]
        columns += [("with_set", 1), ("set_pairs", 0)]
    lines = []
    for name in dict.fromkeys(row["vectors"] for row in found["rows"]):
        numbers = [summary(row) for row in found["rows"] if row["vectors"] == name]
        lines.append([name, *(output.spread([n[key] for n in numbers], digits) for key, digits in columns)])
    seeds = len({row["seed"] for row in found["rows"]})
    text = output.markdown(head, lines) + f"\n\n{len(found['genes']):,} genes; mean ± half the range over {seeds} "
    text += f"seeds. Rich, with a set: clusters at a false discovery rate below {LEVEL:.0%}."
    if found["edges"]:
        like = "interactions and expression" if found["input"] else "interactions"
        text += f" Null: {found['draws']:,} exchanges of genes that are alike in {like}."
    return text


def page(found: Mapping[str, Any]) -> str:
    """Return the whole report as Markdown: the table, then the clusters of the model's first seed."""
    row = found["rows"][0]
    files = [found["edges"]["file"]] if found["edges"] else []
    files += found["sets"]["files"] if found["sets"] else []
    origins = {"table": "its table of genes", "graph": "its graph convolution"}
    origin = origins.get(found["vectors"], f"means over cells of {found['input']}")
    lines = [f"# Clusters of {found['model']}'s genes", "", f"Weights: {found['weights']}. Vectors: {origin}."]
    lines += [f"Tested with {', '.join(files)}.", "", table(found), "", "## Clusters of the first seed", ""]
    genes = np.array(found["genes"])
    head, body = ["cluster", "genes", "edges (null)", "q", "gene sets (q)", "some genes"], []
    for c in range(row["clusters"]):
        members = np.flatnonzero(row["cluster"] == c)
        edges = q = "–"
        if "interactions" in row:
            tests = row["interactions"]
            edges, q = f"{tests['edges'][c]} ({tests['expected'][c]:.1f})", f"{tests['q'][c]:.2g}"
        body.append([str(c), str(len(members)), edges, q, _named(found, row, c), ", ".join(genes[members[:8]])])
    return "\n".join([*lines, output.markdown(head, body)]) + "\n"


def _named(found: Mapping[str, Any], row: Mapping[str, Any], cluster: int) -> str:
    """Return the sets that a cluster is rich in, the surest first."""
    if "sets" not in row:
        return "–"
    tests = row["sets"]
    hits = np.flatnonzero((tests["cluster"] == cluster) & (tests["q"] < LEVEL))[:TOP_SETS]
    names = found["sets"]["names"]
    return "; ".join(f"{names[tests['set'][i]]} ({tests['q'][i]:.1g})" for i in hits) or "–"


def records(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything as JSON has it; of the tests of gene sets those below the level."""
    rows = []
    for row in found["rows"]:
        kept = {k: v for k, v in row.items() if k != "sets"}
        if "sets" in row:
            hits = row["sets"]["q"] < LEVEL
            kept["sets"] = {name: values[hits] for name, values in row["sets"].items()}
            kept["sets"]["set"] = [found["sets"]["names"][i] for i in kept["sets"]["set"]]
        rows.append(kept | {"summary": summary(row)})
    named = found["sets"] and found["sets"] | {"names": len(found["sets"]["names"])}
    return {**found, "sets": named, "rows": rows}


def picture(found: Mapping[str, Any]) -> bytes | None:
    """Draw the edges within each cluster of the first seed against the null's, as PNG; None without interactions."""
    rows = [row for row in found["rows"] if row["seed"] == 0 and "interactions" in row]
    if not rows:
        return None
    figure = Figure(figsize=(3.3 * len(rows), 3.6), layout="constrained")
    panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    most = max(row["interactions"]["edges"].max() for row in rows) * 1.5 + 2
    for axes, row in zip(panels, rows, strict=True):
        tests = row["interactions"]
        x, y, rich = tests["expected"] + 0.5, tests["edges"] + 0.5, tests["q"] < LEVEL
        error = np.clip([x - tests["low"] - 0.5, tests["high"] + 0.5 - x], 0, None)
        axes.plot([0.5, most], [0.5, most], color=figures.INK, lw=0.8)
        for chosen, colour, name in ((~rich, "#9aa4b2", "not"), (rich, figures.COLOURS[0], f"q < {LEVEL:g}")):
            spread = error[:, chosen]
            axes.errorbar(x[chosen], y[chosen], xerr=spread, fmt="o", ms=4, lw=1, color=colour, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(
            f"{names.label(row['vectors'])}: {int(rich.sum())} of {len(x)} clusters", fontsize=10, loc="left"
        )
        axes.set_xlabel("edges under the null (+ 0.5), 95 %")
        axes.grid(color=figures.FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("edges within the cluster (+ 0.5)")
    panels[0].legend(frameon=False, fontsize=9)
    return figures.encoded(figure, "png")
