"""Gene identity promises: the right gene, no guess, no silence, whatever a file calls its genes."""

import gzip
import json
import time

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from data_pipeline.files.h5ad import read_counts
from data_pipeline.genes import vocab
from tests.conftest import SHARED, needs_shared

HGNC = """hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\tensembl_gene_id
HGNC:1\tTAFAZZIN\ttafazzin\t"G4.5|XAP-2"\t"EFE2|TAZ"\tENSG00000102125
HGNC:2\tWWTR1\tWW\t"TAZ"\t\tENSG00000018408
HGNC:3\tFIRRM\tx\t"FLJ10706"\t"C1orf112"\tENSG00000000460
HGNC:4\tCD3E\tx\t\t\tENSG00000198851
HGNC:5\tGENE5\tx\t"SHARED"\t\tENSG00000000005
HGNC:6\tGENE6\tx\t"SHARED"\t"OLD6"\tENSG00000000006
HGNC:7\tC9orf72\tx\t\t\tENSG00000147894
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "hgnc.tsv"
    path.write_text(HGNC)
    return vocab.read_table(path)


def resolved(names, genes, **options):
    mapping = vocab.map_genes(names, genes, min_mapped=None, **options)
    return [genes[i] if i >= 0 else None for i in mapping.index], mapping.report


IDS = [f"ENSG{n:011d}" for n in (102125, 18408, 460, 198851, 5, 6, 147894)]
SYMBOLS = ["TAFAZZIN", "WWTR1", "FIRRM", "CD3E", "GENE5", "GENE6", "C9orf72"]


@pytest.mark.parametrize(
    ("name", "second", "gene", "step"),
    [
        ("CD3E", "", "CD3E", "exact"),
        (" CD3E ", "", "CD3E", "exact"),
        ("nonsense", "CD3E", "CD3E", "second"),
        ("ENSG00000198851.9", "", "CD3E", "table"),
        ("nonsense", "ENSG00000198851.2", "CD3E", "table"),
        ("TAZ", "", "TAFAZZIN", "previous"),
        ("C1orf112", "", "FIRRM", "previous"),
        ("XAP-2", "", "TAFAZZIN", "alias"),
        ("C9ORF72", "", "C9orf72", "case"),
        ("SHARED", "", None, None),
        ("unheard-of", "", None, None),
    ],
)
def test_each_step_finds_its_gene(table, name, second, gene, step):
    found, report = resolved([name], SYMBOLS, ensembl=[second], table=table)
    assert found == [gene] and report.by == ({step: 1} if step else {})


def test_symbols_find_ids_and_ids_find_symbols_and_old_vocabularies_are_understood(table):
    assert resolved(SYMBOLS, IDS, table=table)[0] == IDS
    assert resolved([f"{i}.7" for i in IDS], SYMBOLS, table=table)[0] == SYMBOLS
    assert resolved(["FIRRM", IDS[2]], ["C1orf112", "CD3E"], table=table)[0] == ["C1orf112"] * 2
    assert resolved(["ENSG00000000005.1"], ["ENSG00000000005.12"])[1].by == {"version": 1}


def test_an_ambiguous_name_is_reported_and_never_guessed(table):
    found, report = resolved(["SHARED", "CD3E"], SYMBOLS, table=table)
    assert found == [None, "CD3E"] and report.ambiguous == 1 and "SHARED (alias)" in report.examples["ambiguous"]


def test_an_alias_never_adds_to_a_gene_that_the_file_names_itself(table):
    found, report = resolved(["FIRRM", "C1orf112", "cd3e", "CD3E"], SYMBOLS, table=table)
    assert found == ["FIRRM", None, None, "CD3E"] and report.ambiguous == 2


def test_a_known_id_is_never_taken_for_the_gene_of_another_id(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("gene_id,gene_name\nENSG00000000001,Y_RNA\nENSG00000000002,Y_RNA\n")
    table = vocab.read_table(path)
    found, _ = resolved(["Y_RNA"], ["ENSG00000000001"], ensembl=["ENSG00000000002"], table=table)
    assert found == [None]
    assert resolved(["Y_RNA"], ["ENSG00000000001"], table=table)[0] == ["ENSG00000000001"]
    assert resolved(["Y_RNA"], ["ENSG00000000001", "ENSG00000000002"], table=table)[1].ambiguous == 1


def test_duplicates_are_summed_unknown_dropped_and_both_reported():
    names = ["A", "x", "B", "A", "B"]
    mapping = vocab.map_genes(names, ["B", "A", "C"], ensembl=["", "", "", "", ""])
    counts = sparse.random(50, 5, 0.5, "csr", random_state=0, data_rvs=lambda n: np.arange(1, n + 1)).astype(np.int32)
    dense = counts.toarray()
    expected = np.stack([dense[:, 2] + dense[:, 4], dense[:, 0] + dense[:, 3], np.zeros(50, int)], 1)
    applied = mapping.apply(counts)
    assert np.array_equal(applied.toarray(), expected)
    assert applied.has_sorted_indices and applied.dtype == np.int32 and mapping.index.dtype == np.int32
    assert (mapping.report.merged, mapping.report.unknown, mapping.report.covered) == (2, 1, 2)
    assert "A x 2" in str(mapping.report) and "unknown 1: x" in str(mapping.report)
    with pytest.raises(ValueError, match="5 names"):
        mapping.apply(counts[:, :3])
    columns, few = mapping.compact(multiple=4, most=2)
    assert columns.tolist() == [0, 1, 3, 3], "the genes that the file has, and padding"
    assert np.array_equal(few.apply(counts).toarray(), np.pad(expected[:, :2], ((0, 0), (0, 2))))
    columns, whole = mapping.compact()
    assert columns.tolist() == [0, 1, 2] and whole is mapping, "a file with most of the genes gains nothing"


def test_report_goes_through_json(table):
    report = vocab.map_genes(["TAZ", "CD3E", "?"], SYMBOLS, table=table).report
    again = json.loads(json.dumps(report.to_dict()))
    assert vocab.MappingReport(**again) == report and "TAZ -> TAFAZZIN (previous)" in str(report)


def test_too_few_known_names_stop_with_the_way_out_in_one_line():
    with pytest.raises(
        ValueError, match=r"only 0 of 3 .*gene table \(gene_table, .*lower min_mapped.*species"
    ) as caught:
        vocab.map_genes(["Cd8a-x", "Xist2", "Gm1"], IDS)
    assert "\n" not in str(caught.value)
    vocab.map_genes(["CD3E"], SYMBOLS)  # a panel: all its names known, little of the vocabulary found
    vocab.map_genes([f"N{i}" for i in range(100)] + SYMBOLS, SYMBOLS)  # wide: few names known, all genes found


@pytest.mark.parametrize("case", ["no names", "no vocabulary", "short second", "double vocabulary"])
def test_malformed_arguments(case):
    names, genes, second = ["CD3E"], SYMBOLS, None
    if case == "no names":
        names = []
    elif case == "no vocabulary":
        genes = []
    elif case == "short second":
        second = ["a", "b"]
    else:
        genes = ["CD3E", "CD3E"]
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        vocab.map_genes(names, genes, ensembl=second)


def test_tables_of_every_kind_say_the_same(tmp_path):
    gtf = (
        "##description: x\n"
        'chr1\tHAVANA\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG00000000460.17"; gene_type "x"; gene_name "FIRRM"; level 2;\n'
        'chr1\tHAVANA\texon\t1\t2\t.\t+\t.\tgene_id "ENSG00000000460.17"; gene_name "FIRRM"; exon_number 1;\n'
        'chr1\tHAVANA\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG00000198851.10"; gene_name "CD3E";\n'
    )
    files = {
        "a.gtf": gtf,
        "b.tsv": "gene_id\tgene_name\nENSG00000000460.17\tFIRRM\nENSG00000198851.10\tCD3E\n",
        "c.csv": "Gene stable ID,Gene name\nENSG00000000460,FIRRM\nENSG00000198851,CD3E\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.write(text)
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            table = vocab.read_table(path)
            assert (table.ids, table.symbols) == (["ENSG00000000460", "ENSG00000198851"], ["FIRRM", "CD3E"])
    (tmp_path / "hgnc.txt").write_text(HGNC)
    both = vocab.read_table([tmp_path / "a.gtf", tmp_path / "hgnc.txt"])
    assert len(both) == len(SYMBOLS) and resolved(["TAZ"], IDS, table=both)[0] == [IDS[0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.txt", "B\nA\n\nC\n"),
        ("g.tsv", "gene\tn\nB\t1\nA\t2\nC\t3\n"),
        ("g.csv", "symbol,n\nB,1\nA,2\nC,3\n"),
        ("g.json", '["B", "A", "C"]'),
        ("h.json", '{"genes": ["B", "A", "C"]}'),
        ("v.json", '{"C": 2, "B": 0, "A": 1}'),
    ],
)
def test_gene_lists_of_every_kind(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
        file.write(text)
    assert vocab.read_genes(tmp_path / name) == vocab.read_genes(tmp_path / f"{name}.gz") == ["B", "A", "C"]


@pytest.mark.parametrize(
    ("reader", "content", "error"),
    [
        (vocab.read_genes, None, FileNotFoundError),
        (vocab.read_genes, b"", ValueError),
        (vocab.read_genes, b"A\nB\nA\n", ValueError),
        (vocab.read_genes, b"\xff\xfe\x00", ValueError),
        (vocab.read_genes, gzip.compress(b"A\nB\n" * 999, mtime=0)[:-9], ValueError),
        (vocab.read_table, None, FileNotFoundError),
        (vocab.read_table, b"", ValueError),
        (vocab.read_table, b"x\ty\n1\t2\n", ValueError),
        (vocab.read_table, b"symbol\tensembl_id\n", ValueError),
    ],
)
def test_malformed_files_end_in_one_line_that_names_them(tmp_path, reader, content, error):
    path = tmp_path / "genes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"\A[^\n]*genes\.txt[^\n]+\Z"):
        reader(path)


def test_json_of_something_else_says_what_is_in_it(tmp_path):
    (tmp_path / "g.json").write_text('{"one": [], "two": []}')
    with pytest.raises(ValueError, match="one, two"):
        vocab.read_genes(tmp_path / "g.json")


def test_second_names_are_the_other_kind():
    frame = pd.DataFrame({"gene_ids": IDS, "feature_name": SYMBOLS}, index=SYMBOLS)
    assert vocab.second_names(frame) == IDS
    assert vocab.second_names(frame.set_index(pd.Index(IDS))) == SYMBOLS
    assert vocab.second_names(frame[[]]) is None
    frame["gene_ids"] = [None, *IDS[1:]]
    assert vocab.second_names(frame)[0] == ""


def test_union_names_every_gene_once_and_only_grows_at_its_end():
    one = (["TAFAZZIN", "CD3E", "local"], ["ENSG00000102125.3", "", ""])
    two = (["CD3E", "WWTR1", "TAFAZZIN"], ["ENSG00000198851", "ENSG00000018408", ""])
    table = vocab.learn([one, two])
    genes = vocab.union([one, two], table)
    assert genes == ["ENSG00000102125", "ENSG00000198851", "local", "ENSG00000018408"]
    assert vocab.union([two, one], table, start=genes) == genes
    more = vocab.union([(["new", "CD3E"], None)], table, start=genes)
    assert more == [*genes, "new"]
    for names, second in (one, two):
        assert (vocab.map_genes(names, genes, ensembl=second, table=table).index >= 0).all()


@pytest.mark.slow
@needs_shared
def test_real_studies_map_to_published_vocabularies_and_to_their_union():
    genes = SHARED / "data" / "genes"
    table = vocab.read_table(genes / "human_gene_table.tsv.gz")
    lists = json.loads(gzip.decompress((genes / "model_gene_lists.json.gz").read_bytes()))
    studies = []
    for name in ("pbmc3k", "pbmc_pisces_1000", "lung_celllines_mixology", "pbmc_citeseq_5k10k_400"):
        with read_counts(SHARED / "data" / "cells" / f"{name}.h5ad") as counts:
            studies.append((counts.genes, vocab.second_names(counts.var)))
    names, second = studies[0]
    report = vocab.map_genes(names, lists["cellplm_85M_gene_list"]["genes"], ensembl=second).report
    assert report.covered == 18638  # Ensembl ids alone
    by_symbol = vocab.map_genes(names, lists["cellplm_85M_gene_list"]["genes"], table=table).report
    assert by_symbol.covered > 17000
    known = vocab.learn(studies, table)
    union = vocab.union(studies, known)
    assert len(set(union)) == len(union)
    for names, second in studies:
        start = time.process_time()
        mapping = vocab.map_genes(names, union, ensembl=second, table=known, min_mapped=None)
        assert time.process_time() - start < 2  # seconds, for up to 58,828 names
        assert mapping.report.unknown == 0
    assert vocab.union(studies[::-1], known, start=union) == union
