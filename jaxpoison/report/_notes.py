"""The fixed prose of the report: what a verdict means, what each method can and cannot see."""

from __future__ import annotations

MEANING = {
    "clean": (
        "No class behaves as if a group of planted rows were hidden in it. That lowers the risk; "
        "it is not a proof (see the limits below)."
    ),
    "suspicious": (
        "At least one class holds a group of rows that does not fit, but the evidence would also "
        "fit a natural sub-group. A person should look before anyone decides."
    ),
    "poisoned": (
        "At least one class holds a group of rows that is very unlikely to be there by nature. "
        "A model trained on this data may obey whoever planted them."
    ),
}

NEXT_STEPS = {
    "clean": (
        "Glance at the least typical rows below: wrong labels show up there too.",
        "Keep the fingerprint, so that you can prove later which data was scanned.",
        "Scan again when rows are added, or with features of your own trained model.",
    ),
    "suspicious": (
        "Compare flagged and unflagged rows below. A common mark or a wrong label speaks for "
        "poison; a rare but honest variety speaks against it.",
        "Scan again with another seed, or with features of your own trained model: poison stays.",
        "Until that is settled, train on the rows in clean_index.npy.",
    ),
    "poisoned": (
        "Do not train on this data as it is.",
        "Look at the flagged rows below: a common mark or a plainly wrong label confirms it.",
        "Train on the rows in clean_index.npy, and scan those once more.",
        "Find out where the flagged rows came from; one origin often explains them all.",
    ),
}

KINDS = {
    "backdoor": (
        "Rows of other classes that show something which the classes they seem to come from lack: "
        "a model may learn to obey it."
    ),
    "label_flip": (
        "Rows of other classes that show nothing else: their labels look wrong. The column "
        "suggested_label says what they look like."
    ),
    "subpopulation": "One part of another class under this label.",
    "duplicates": "Near-copies of a few rows, many times.",
    "clean_label": (
        "Rows that share something which the rest of their class lacks. If it was planted, a model "
        "may take it for the class."
    ),
    "targeted": (
        "Rows that stand apart from their class, each in its own way. If they were planted, it was "
        "so that a few chosen inputs of another class are taken for this one; with such inputs as "
        "--target, a scan ranks what is behind them."
    ),
}

METHODS = {
    "spectral": (
        "Spectral signatures",
        "Centres a class and scores each row by how far it lies along the strongest direction.",
        "Weak where poison is rare, or where natural variety is stronger than the trigger.",
    ),
    "activation": (
        "Activation clustering",
        "Splits a class into two clusters; a small and well separated one is suspicious.",
        "Sees natural sub-groups as well, and misses poison too rare to form a cluster.",
    ),
    "spectre": (
        "SPECTRE",
        "Whitens a class with a covariance that poison cannot bend much, then scores rows by the "
        "directions in which too much variance is left.",
        "Depends on how much of the class is trimmed; weak where poison is most of a class.",
    ),
    "mahalanobis": (
        "Robust Mahalanobis distance",
        "Measures how far a row lies from the bulk of its class, in units of its spread.",
        "Finds odd rows of any kind, honest ones too; says nothing about groups.",
    ),
    "mixture": (
        "Two-component mixture",
        "Asks how much better two Gaussian groups explain a class than one does, also along "
        "directions in which the other classes do not vary.",
        "Honest classes of two kinds look alike; exclusion decides between them and poison.",
    ),
    "whitening": (
        "Contrast whitening",
        "Looks along the direction in which a class varies and the other classes do not, and asks "
        "whether its rows fall into two groups there.",
        "Sees one shift that many rows share; not triggers that move, bend or follow the row.",
    ),
    "duplicates": (
        "Near duplicates",
        "Joins rows that are nearer to each other than honest rows of the class are.",
        "Copies that were changed much look honest; so do pairs, and copies that are half a class.",
    ),
    "labels": (
        "Label views",
        "Asks classifiers that never saw a row's label, and each see part of the row, what it is.",
        "Poison whose labels are right goes unseen; rows between two classes look wrong.",
    ),
    "neighbours": (
        "Neighbours' labels",
        "Scores rows whose nearest rows carry other labels.",
        "Planted rows that lie together vote for each other.",
    ),
    "density": (
        "Local density",
        "Scores rows that lie farther from their neighbours than those do from theirs.",
        "Finds lone rows of any kind, honest ones too; a group of planted rows is not alone.",
    ),
    "early_loss": (
        "Early loss",
        "Scores rows that the network has not learnt in the first part of its training.",
        "Sees wrong labels; a clear trigger is learnt early and scores low.",
    ),
    "el2n": (
        "Error norm (EL2N)",
        "Scores rows by how far the network's probabilities are from the label early on.",
        "As early loss.",
    ),
    "aum": (
        "Area under the margin",
        "Scores rows whose own class stays behind another one all through the training.",
        "Sees wrong labels; not backdoors, which the network learns well.",
    ),
    "loss_drop": (
        "Pace of the loss",
        "Scores rows whose loss falls much sooner or later than that of their class.",
        "Says nothing where poison is most of a class.",
    ),
    "low_loss": (
        "Low-loss isolation",
        "Scores rows that are learnt at once, as triggers are.",
        "Easy honest rows score as high; rare or faint triggers are learnt later.",
    ),
    "clusters": (
        "Density clusters",
        "Looks for dense groups in a class besides its main one.",
        "Natural sub-groups are such groups.",
    ),
    "split": (
        "Variance decomposition (SCAn)",
        "Tests whether a class is better explained by two normal distributions of one covariance.",
        "Natural sub-groups pass as well; nothing is seen where every class is poisoned alike.",
    ),
    "gram": (
        "Powers of Gram matrices",
        "Scores rows whose features go together in an unusual way.",
        "Each row is judged by itself: says nothing about groups.",
    ),
    "low_rank": (
        "Robust principal components",
        "Scores rows by what a few components and sparse errors leave of them.",
        "Finds odd rows of any kind, honest ones too.",
    ),
    "strip": (
        "STRIP",
        "Mixes each row with rows of other classes; a trigger keeps the prediction as it was.",
        "Needs a network that learnt a trigger which survives the mixing.",
    ),
    "gradient_direction": (
        "Direction of gradients",
        "Scores rows by how far they pull a network's weights along the main direction of "
        "their class.",
        "Rows that were learnt hardly pull: it shows wrong labels and hard rows, seldom triggers.",
    ),
    "gradient_norm": (
        "Gradient norm",
        "Scores rows by how much they would still move the trained network.",
        "Hard honest rows score high too; a backdoor that was learnt scores low.",
    ),
    "self_influence": (
        "Self-influence",
        "Predicts how much a row's own loss would rise without it.",
        "Poisoned rows that explain each other score low.",
    ),
    "influence": (
        "Influence on given predictions",
        "Predicts how much the loss of the given targets would rise without each row, in nats.",
        "Honest predictions rest on honest rows: it explains, and has no part in the verdict.",
    ),
    "shapley": (
        "k-NN Shapley value",
        "Minus what a row adds to the accuracy of its neighbours on the trusted rows.",
        "Having seen the trusted rows it has no part in the verdict. Triggered rows have no "
        "trusted neighbours to harm.",
    ),
    "exclusion": (
        "Verification by exclusion",
        "Takes a group's rows out of a classifier exactly, asks it what they are, and compares "
        "their distance to their own class with that to other classes.",
        "Poison whose labels are right stays unconfirmed, and so does poison in inputs that do "
        "not tell the classes apart without the trigger.",
    ),
}

UNCALIBRATED = (
    "Uncalibrated: no trusted data was given, so p- and q-values compare each row with the bulk "
    "of the scanned data itself. Read them as a ranking with an estimated error rate."
)
CALIBRATED = (
    "The p- and q-values hold if the trusted rows are honest and were drawn at random from the "
    "honest rows. A row that only its q-value flags is unusual, which need not mean poisoned."
)
LIMITS = (
    "Natural sub-groups (a rare style, another camera, duplicates) can look like poison. The "
    "pictures are there to tell them apart.",
    "Poison whose labels are right and whose mark is faint (clean-label attacks) mostly goes "
    "unseen, and so do a handful of rows in a large class.",
    "Where poison is most of a class, the honest rows look like the minority.",
    "Single wrong labels are not an attack pattern. They rank high, but need not be flagged.",
    "The scan sees what its features show. Features of the model you will train show more.",
)
