"""What the tables mean, in the words that Markdown and HTML share."""

from __future__ import annotations

METHOD = (
    "A fifth of every set (4,000 rows of the test file, where a set has its own) is held out "
    "before anything is poisoned. The scan sees the poisoned training rows and nothing else: no "
    "rate, no trigger, no clean rows.",
    "Rankings (AUROC, average precision, true positives at 1 % false positives) take each "
    "detector's score of every row, over all classes together, against the planted rows. Fused is "
    "the score the scan itself ranks by. Cover rows, which carry a trigger under their honest "
    "label, are left out of rankings as the field does, and count as clean where flags are "
    "counted. Rows that an attack adds are judged like any other.",
    "Kind and target are right where the scan's most confident finding names them; a dash stands "
    "where an attack has no one target.",
    "Accuracy is that of a small network on the honest test rows. Success is the share of test "
    "rows whose honest label is another, shown with the trigger where there is one, that get the "
    "label the attacker wants; for targeted attacks, the share of the victims, which are in no "
    "training set. The perfect filter removes exactly the poisoned rows, the "
    "random one as many rows as were flagged. Architecture, epochs and seed are the same for all "
    "four.",
    "Ranges are 95 % t-intervals of the mean over seeds, cut to 0 to 1; each seed draws rows, "
    "target, poison and network anew. No range is given for a single seed. Where all seeds agree "
    "the range has no width, which says nothing about the next seed.",
)
