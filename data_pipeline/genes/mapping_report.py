"""What became of the names of a file, in numbers and in words: nothing is left out, summed or renamed unsaid."""

from dataclasses import asdict, dataclass, field

EXAMPLES = 5
FEW = 0.1
"""Share of a model's genes below which what it says of a file rests on few of them."""


@dataclass
class MappingReport:
    """What became of the names of a file.

    Attributes:
      n: names. mapped: names that are a gene of the vocabulary. renamed: found by the table, letter case or a number
      behind the name only. merged: names added to the counts of another one. unknown: names left out; ambiguous: those
      of them that may be a gene of the vocabulary, but not surely. vocab: genes of the vocabulary. covered: those that
      the file has. by: how many names each step resolved. examples: a few of each kind.
      notes: what else is to be known, a line each. share: of the counts of some of the file's cells, what its mapped
      names hold; None where nobody looked. whose: vocabulary it is.
    """

    n: int
    mapped: int
    renamed: int
    merged: int
    unknown: int
    ambiguous: int
    vocab: int
    covered: int
    by: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    share: float | None = None
    whose: str = "model"

    def __str__(self) -> str:
        counts = "" if self.share is None else f", which hold {self.share:.1%} of its counts"
        lines = [
            f"genes: {self.covered:,} of the {self.whose}'s {self.vocab:,} genes ({self.covered / self.vocab:.1%}) are "
            f"in the file, as {self.mapped:,} of its {self.n:,} names{counts}",
            f"  by {', '.join(f'{step} {count:,}' for step, count in self.by.items()) or 'nothing'}",
        ]
        for kind in ("renamed", "merged", "unknown", "ambiguous"):
            if getattr(self, kind):
                examples = ", ".join(self.examples[kind])
                lines.append(f"  {kind} {getattr(self, kind):,}{examples and f': {examples}'}")
        lines += [f"  {note}" for note in self.notes]
        if self.whose == "model" and self.covered < FEW * self.vocab:
            text = f"only {self.covered / self.vocab:.1%} of the model's genes are in the file ({self.covered:,})"
            lines.append(f"  warning: {text}: the others count as not measured")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return the report as plain values for JSON."""
        return asdict(self)
