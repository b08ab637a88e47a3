"""What a file calls its genes: columns, missing and numbered names, numbers for names, other species."""

import types

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from data_pipeline.genes import edge_lists, gene_vectors, naming, vocab

SYMBOLS = [
    "CD3D", "CD3E", "CD4", "CD8A", "CD8B", "IL7R", "CCR7", "LEF1", "TCF7", "GZMB", "NKG7", "GNLY", "PRF1", "KLRD1",
    "MS4A1", "CD79A", "CD79B", "CD19", "CD74", "HLA-DRA",
]  # fmt: skip
IDS = [f"ENSG{100000 + i:011d}" for i in range(20)]
MOUSE_IDS = [f"ENSMUSG{200000 + i:011d}" for i in range(20)]
MOUSE = [name.capitalize() for name in SYMBOLS]
ROWS = [str(i) for i in range(20)]


def opened(index, x=None, **columns):
    """Return an open file of these genes, with counts 1, 2, ... of one cell."""
    x = np.arange(1, len(index) + 1)[None] if x is None else x
    var = pd.DataFrame(columns, index=pd.Index(index, dtype=object))
    read = types.SimpleNamespace(var=var, path="file.h5ad", n_cells=len(x), n_genes=len(index))
    read.rows = lambda start, stop: sparse.csr_matrix(x[start:stop], dtype=np.int32)
    return read


def summed(counts, genes, **options):
    """Return the counts of the first cell by the gene they end in, and the report."""
    mapping = vocab.onto(counts, genes, **options)
    row = mapping.apply(counts.rows(0, 1)).toarray()[0]
    return {gene: int(n) for gene, n in zip(genes, row, strict=True) if n}, mapping.report


EVERY = {name: i + 1 for i, name in enumerate(SYMBOLS)}


@pytest.mark.parametrize(
    "column",
    ["feature_name", "gene_symbols", "gene_short_name", "Symbol", "features", "gene", "Gene Symbol", "gene_name-0",
     "gene.name", "external_gene_name"],
)  # fmt: skip
@pytest.mark.parametrize("index", [IDS, ROWS, [f"{i}.0" for i in range(20)], [f"{id}.7" for id in IDS]])
def test_symbols_are_read_in_every_usual_column_whatever_the_index_is(index, column):
    assert summed(opened(index, **{column: SYMBOLS}), SYMBOLS)[0] == EVERY


@pytest.mark.parametrize("column", ["gene_ids", "ensembl", "feature_id", "ensembl_id", "gene", "Ensembl ID"])
@pytest.mark.parametrize("index", [SYMBOLS, ROWS, [f"gene{i}" for i in range(20)]])
def test_ids_are_read_in_every_usual_column_whatever_the_index_is(index, column):
    counts, _ = summed(opened(index, **{column: [f"{id}.3" for id in IDS]}), IDS)
    assert list(counts.values()) == list(range(1, 21))


def test_names_that_only_a_column_has_serve_beside_an_index_of_other_names():
    local = [f"locus_{i}" for i in range(20)]
    assert summed(opened(local, gene_symbols=SYMBOLS, gene_ids=IDS), SYMBOLS)[0] == EVERY
    assert summed(opened(local, gene_symbols=SYMBOLS), SYMBOLS)[0] == EVERY
    assert vocab.file_names(opened(local, gene_symbols=SYMBOLS, gene_ids=IDS)) == (SYMBOLS, IDS)
    assert vocab.file_names(opened(local, gene_symbols=SYMBOLS)) == (local, SYMBOLS), "a locus stays what it is"


@pytest.mark.parametrize("index", [ROWS, [int(i) for i in ROWS], [str(7 * i + 3) for i in range(20)]])
def test_numbers_are_no_genes_and_the_columns_that_look_like_genes_are_named(index):
    lost = opened(index, hers=SYMBOLS, feature_types=["Gene Expression"] * 20, n_cells=list(range(20)))
    for read in (vocab.file_names, lambda counts: vocab.onto(counts, SYMBOLS)):
        with pytest.raises(ValueError, match=r"\Afile\.h5ad: .*numbers.*look like genes: hers;[^\n]*\Z"):
            read(lost)
    with pytest.raises(ValueError, match="no column looks like genes"):
        vocab.file_names(opened(index))


def test_studies_are_never_merged_by_the_number_of_a_row():
    lung = vocab.file_names(opened(ROWS, soma_joinid=range(20), feature_id=IDS, feature_name=SYMBOLS))
    gut = vocab.file_names(opened(ROWS[:10], soma_joinid=range(10), feature_id=IDS[10:], feature_name=SYMBOLS[10:]))
    assert vocab.union([lung, gut], vocab.learn([lung, gut])) == IDS


def test_numbers_of_ncbi_are_genes_where_the_vocabulary_has_them():
    entrez = [str(900 + 3 * i) for i in range(20)]
    assert list(summed(opened(entrez), entrez)[0].values()) == list(range(1, 21))
    assert summed(opened(entrez, gene_symbols=SYMBOLS), SYMBOLS)[0] == EVERY
    with pytest.raises(ValueError, match="numbers"):
        vocab.onto(opened(ROWS), ROWS)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NA", "<NA>", "", None, np.nan, pd.NA])
def test_genes_without_a_name_are_left_out_and_never_one_gene(word):
    names = [*SYMBOLS[:15], *[word] * 5]
    counts = opened(names)
    assert vocab.union([vocab.file_names(counts)]) == SYMBOLS[:15]
    got, report = summed(counts, SYMBOLS)
    assert got == {name: EVERY[name] for name in SYMBOLS[:15]} and "5 genes without a name" in str(report)
    assert summed(opened(names, gene_ids=IDS), IDS)[0] == dict(zip(IDS, range(1, 21), strict=True))
    assert vocab.union([vocab.file_names(opened(names, gene_ids=IDS))]) == IDS


def test_numbered_missing_names_are_missing_and_one_gene_may_be_called_nan():
    assert vocab.union([vocab.file_names(opened([*SYMBOLS, "nan", "nan-1", "nan-2", "", "-1"]))]) == SYMBOLS
    assert vocab.union([vocab.file_names(opened([*SYMBOLS, "nan"]))]) == [*SYMBOLS, "nan"]
    assert vocab.union([vocab.file_names(opened([*SYMBOLS, "NaN"]))]) == SYMBOLS


@pytest.mark.parametrize("mark", ["-", "."])
def test_names_that_were_made_unique_are_summed_and_it_is_said(mark):
    names = ["MATR3", *SYMBOLS, f"MATR3{mark}1", f"MATR3{mark}2", f"CD4{mark}2"]
    got, report = summed(opened(names), ["MATR3", *SYMBOLS])
    assert got["MATR3"] == 1 + 22 + 23 and got["CD4"] == 4, "CD4-2 has no CD4-1 before it"
    assert report.by["number"] == 2 and "MATR3 x 3" in str(report)
    assert vocab.union([vocab.file_names(opened(names))]) == ["MATR3", *SYMBOLS, f"CD4{mark}2"]
    apart = ["MATR3", f"MATR3{mark}1"]
    assert summed(opened(apart), apart)[0] == {apart[0]: 1, apart[1]: 2}, "a vocabulary that tells them apart"
    assert vocab.union([vocab.file_names(opened(apart, gene_ids=IDS[:2]))]) == IDS[:2]


def test_second_names_of_a_vocabulary_serve_files_of_either_kind():
    table = vocab.learn([(IDS, SYMBOLS)])
    assert list(summed(opened(SYMBOLS), IDS, table=table)[0].values()) == list(range(1, 21))
    table = vocab.learn([(SYMBOLS, IDS)])
    assert summed(opened([f"{id}.2" for id in IDS]), SYMBOLS, table=table)[0] == EVERY


# -------------------------------------------------------------------------------------------------------------- species


@pytest.mark.parametrize("table", [None, vocab.learn([(SYMBOLS, IDS)])])
def test_mouse_genes_are_never_human_ones_and_the_species_is_named(table):
    for index, columns in ((MOUSE, {"gene_ids": MOUSE_IDS}), (MOUSE_IDS, {"gene_symbols": MOUSE})):
        with pytest.raises(ValueError, match=r"only 0 of 20 .*mouse"):
            vocab.onto(opened(index, **columns), SYMBOLS, table=table)
    with pytest.raises(ValueError, match=r"only 0 of 20 .*\(Cd3d and CD3D\).*mouse"):
        vocab.onto(opened(MOUSE), SYMBOLS, table=table)


def test_an_id_of_another_species_beside_a_symbol_that_is_the_same_is_left_out_where_the_vocabulary_tells():
    counts = opened(SYMBOLS, gene_ids=[*MOUSE_IDS[:5], *IDS[5:]])
    got, report = summed(counts, SYMBOLS, table=vocab.learn([(SYMBOLS, IDS)]))
    assert got == {name: EVERY[name] for name in SYMBOLS[5:]} and "5 genes have ids of mouse" in str(report)
    assert "mouse" in str(summed(counts, SYMBOLS)[1]), "symbols alone do not tell: it is said"
    assert "mouse" not in str(summed(opened(MOUSE, gene_ids=MOUSE_IDS), MOUSE)[1])
    assert "macaque" in str(summed(opened(SYMBOLS, gene_ids=[f"ENSMMUG{i:011d}" for i in range(20)]), SYMBOLS)[1])


@pytest.mark.parametrize("mouse", [(MOUSE, MOUSE_IDS), (MOUSE, [""] * 20)])
@pytest.mark.parametrize("human", [(SYMBOLS, IDS), (SYMBOLS, [""] * 20)])
def test_a_store_of_two_species_keeps_their_genes_apart(human, mouse):
    table = vocab.learn([human, mouse])
    genes = vocab.union([human, mouse], table)
    assert len(genes) == 40
    index = vocab.map_genes(mouse[0], genes, ensembl=mouse[1], table=table).index
    assert sorted(index) == list(range(20, 40))


def test_a_few_names_in_another_case_and_a_file_in_small_letters_stay_what_they_are():
    genes = [*SYMBOLS, "C9orf72"]
    assert summed(opened([*SYMBOLS, "C9ORF72"]), genes)[1].mapped == 21
    assert summed(opened([name.lower() for name in SYMBOLS]), SYMBOLS)[0] == EVERY


# --------------------------------------------------------------------------------------------------------------- report


def test_the_report_leads_with_the_share_of_the_model_and_of_the_counts():
    wide = opened([*SYMBOLS, *[f"OTHER{i}" for i in range(980)]], np.r_[np.full(20, 49), np.ones(980)][None])
    text = str(summed(wide, SYMBOLS)[1])
    assert text.startswith("genes: 20 of the model's 20 genes (100.0%) are in the file, as 20 of its 1,000")
    assert "hold 50.0% of its counts" in text and "warning" not in text


def test_a_file_with_few_genes_of_the_model_is_warned_of_with_the_number():
    genes = [*SYMBOLS[:6], *[f"OTHER{i}" for i in range(994)]]
    assert "warning: only 0.6% of the model's genes are in the file (6)" in str(summed(opened(SYMBOLS[:6]), genes)[1])
    assert "warning" not in str(vocab.onto(opened(SYMBOLS[:6]), genes, whose="store").report)


def test_where_no_name_fits_the_columns_that_look_like_genes_are_listed():
    with pytest.raises(ValueError, match=r"only 0 of 20.*look like genes: hers \(make"):
        vocab.onto(opened([f"g{i}" for i in range(20)], hers=SYMBOLS, gene_types=["coding"] * 20), SYMBOLS)


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_header_behind_a_number_sign_is_a_header_and_a_comment_is_none(tmp_path):
    path = tmp_path / "gene_info"
    path.write_text(
        "#tax_id\tGeneID\tSymbol\tLocusTag\tSynonyms\tdbXrefs\n"
        "9606\t915\tCD3D\t-\tCD3-DELTA|T3D\tMIM:186790|HGNC:HGNC:1673|Ensembl:ENSG00000167286\n"
        "9606\t916\tCD3E\t-\t-\tHGNC:HGNC:1674\n"
    )
    table = vocab.read_table(path)
    assert (table.ids, table.symbols) == (["ENSG00000167286", ""], ["CD3D", "CD3E"])
    for name in ("T3D", "ENSG00000167286.9"):
        assert vocab.map_genes([name], ["CD3D", "CD3E"], table=table).index.tolist() == [0]
    path.write_text("# symbols, of 2024\n##a line\nsymbol\tensembl_id\nCD3D\tENSG00000167286\n")
    assert vocab.read_table(path).symbols == ["CD3D"]
    path.write_text('##gff 3\n#!\nchr1\tx\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG00000167286"; gene_name "A";\n')
    assert vocab.read_table(path).symbols == ["A"]


@pytest.mark.parametrize(
    ("scores", "weights"), [("0.912 0.4", [0.912, 0.4]), ("912 400", [0.912, 0.4]), ("1 0.15", [1, 0.15])]
)
def test_scores_of_interactions_are_shares_whether_in_thousandths_or_not(tmp_path, scores, weights):
    one, two = scores.split()
    (tmp_path / "string.tsv").write_text(f"#node1\tnode2\tcombined_score\nA\tB\t{one}\nB\tC\t{two}\n")
    assert edge_lists.read_edges(tmp_path / "string.tsv").weight.tolist() == pytest.approx(weights)


def test_vectors_without_names_say_what_to_put_beside_them(tmp_path):
    np.save(tmp_path / "gene2vec_16906.npy", np.ones((2, 3), np.float32))
    with pytest.raises(OSError, match=r"gene2vec_16906\.npy: .*list of its genes beside it, gene2vec_16906\.txt"):
        gene_vectors.read(tmp_path / "gene2vec_16906.npy")
    (tmp_path / "gene2vec_16906.txt").write_text("A\nB\n")
    assert gene_vectors.read(tmp_path / "gene2vec_16906.npy")[0] == ["A", "B"]


def test_texts_are_those_of_any_column():
    values = pd.Categorical(["A", None, " B "])
    assert naming.texts(values) == ["A", "", "B"]
    assert naming.texts([b"A", 920.0, 7, np.nan]) == ["A", "920", "7", ""]
