"""Plans, what is read, votes in pieces, and runs that were cut off."""

from __future__ import annotations

import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

import kept_runs
from jaxpoison._check import DataError, UsageError
from jaxpoison.certify import General, certify
from jaxpoison.certify.ensemble import fit
from jaxpoison.certify.features import Chain, Deskew, Pixels
from jaxpoison.certify.learners import ClassMean, KernelRidge, mlp
from jaxpoison.certifying import CertifyPlan, forecast, run, run_into, voting
from jaxpoison.certifying.execute import subsets_of
from jaxpoison.certifying.opening import open_data
from jaxpoison.certifying.plan import FEATURES, LEARNERS, default_k
from jaxpoison.certifying.recipes import auto_features, key_of, learner_of
from jaxpoison.sources import Schema
from jaxpoison.work import difference, saved_identity

BUNCH = load_digits()
X, Y = BUNCH.images.astype(np.uint8), BUNCH.target
GREY, SMALL, COLOUR, TABLE = (
    Schema(kind, shape, dtype, None)
    for kind, shape, dtype in (
        ("images", (28, 28), "uint8"), ("images", (8, 8), "uint8"),
        ("images", (32, 32, 3), "uint8"), ("rows", (9,), "float32"),
    )
)  # fmt: skip
QUICK = {"learner": "class-mean", "features": "pixels"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "train.npz", x=X[:300], y=Y[:300])
    np.savez(tmp_path / "test.npz", x=X[300:350], y=Y[300:350])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(**options):
    return CertifyPlan(**{"data": "train.npz", "test": "test.npz", "k": 8, **QUICK, **options})


@pytest.mark.parametrize(
    ("rows", "k"),
    [
        (1, 2),
        (60, 2),
        (299, 2),
        (300, 10),
        (1437, 20),
        (1500, 50),
        (60_000, 2000),
        (10**7, 200_000),
    ],
)
def test_the_default_k_leaves_thirty_rows_a_subset(rows, k):
    assert default_k(rows) == k


def test_features_follow_the_shape_of_rows_alone():
    named = {"28": GREY, "8": SMALL, "colour": COLOUR, "table": TABLE}
    assert {name: auto_features(schema) for name, schema in named.items()} == {
        "28": "deskew+scattering", "8": "deskew", "colour": "scattering", "table": "pixels",
    }  # fmt: skip
    assert learner_of(CertifyPlan("a", "b"), SMALL) == KernelRidge(
        features=Chain((Deskew(), Pixels()))
    )


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("features", FEATURES)
def test_every_name_is_a_learner_or_a_clear_error(learner, features):
    plan = CertifyPlan("a", "b", learner=learner, features=features)
    if learner == "cnn" and features != "auto":
        with pytest.raises(UsageError, match="images as they are"):
            learner_of(plan, GREY)
        return
    assert learner_of(plan, GREY).digest() == learner_of(plan, GREY).digest()
    if learner == "cnn" or features not in ("auto", "pixels"):
        with pytest.raises(UsageError, match="images"):
            learner_of(plan, TABLE)
    else:
        assert learner_of(plan, TABLE).name


def test_the_salt_is_in_no_plan():
    plan = plan_of(salt="secret")
    assert "secret" not in str(plan.as_dict()) and plan.as_dict()["salt"] is True
    assert "secret" not in str(key_of(plan).to_json())
    assert key_of(plan).to_json() != key_of(plan_of()).to_json()


def test_a_run_is_what_the_library_says(folder):
    report = run(plan_of())
    own = certify(
        fit(X[:300], Y[:300], k=8, learner=ClassMean(features=Pixels())).votes(X[300:350]),
        threat=General(),
    )
    for name, column in (
        ("prediction", "prediction"), ("radius", "radius"), ("first", "votes_first"),
        ("second", "votes_second"),
    ):  # fmt: skip
        assert np.array_equal(getattr(own, name), report.columns[column])
    assert report.document["median"] == own.median(Y[300:350])


@pytest.mark.parametrize("scheme", ["dpa", "fa", "roe", "fa+roe"])
def test_an_attack_within_the_radius_changes_no_certified_row(folder, scheme):
    spread = 3 if "fa" in scheme else None
    plan = plan_of(scheme=scheme, spread=spread, k=20, classes=10)
    before = run(plan).columns
    strong = np.flatnonzero(before["radius"] >= 4)
    assert len(strong) > 5
    rng = np.random.default_rng(7)
    victim = strong[0]
    wrong = (before["prediction"][victim] + 1) % 10
    for attempt in range(3):
        # copies of the victim under another label, flips of rows near it, and a deletion
        x, y = X[:300].copy(), Y[:300].copy()
        near = np.argsort(((x.astype(int) - X[300 + victim].astype(int)) ** 2).sum(axis=(1, 2)))
        y[near[attempt]] = wrong
        kept = np.setdiff1d(np.arange(300), near[5 + attempt])
        copies = np.repeat(X[300 + victim][None], 2, axis=0)
        copies[1, 0, 0] = 1 + attempt
        order = rng.permutation(len(kept) + 2)
        np.savez(
            "train.npz", x=np.concatenate([x[kept], copies])[order],
            y=np.concatenate([y[kept], [wrong, wrong]])[order],
        )  # fmt: skip
        after = run(plan).columns
        assert np.array_equal(after["prediction"][strong], before["prediction"][strong])
        assert not np.array_equal(after["votes_first"], before["votes_first"])


@pytest.mark.parametrize("scheme", ["dpa", "fa+roe"])
def test_pieces_change_nothing(folder, monkeypatch, scheme):
    spread = 3 if scheme != "dpa" else None
    told = []
    whole = run(plan_of(scheme=scheme, spread=spread), progress=lambda *event: told.append(event))
    assert told[-1] == ("vote", 50, 50) and ("read", 0, 0) in told
    monkeypatch.setattr("jaxpoison.certifying.execute._FEATURE_ROWS", 64)
    monkeypatch.setattr(voting, "rows_of_a_piece", lambda *_: 7)
    parts = run(plan_of(scheme=scheme, spread=spread))
    for name, column in whole.columns.items():
        assert np.array_equal(column, parts.columns[name]), name
    assert whole.document["accuracy"] == parts.document["accuracy"]


@pytest.mark.slow
def test_members_that_are_trained_apart_vote_as_together(folder, monkeypatch):
    learner = mlp((8,), epochs=2, strategy="map")
    ensemble = fit(X[:300], Y[:300], k=5, learner=learner, num_classes=10)
    monkeypatch.setattr(voting, "MEMBERS", 2)
    count = voting.Count("run_off", General(), Y[300:350])
    told = []
    (piece,) = voting.pieces(ensemble, X[300:350], count, None, told.append)
    own = certify(ensemble.votes(X[300:350], ranking=True), "run_off")
    assert np.array_equal(piece.prediction, own.prediction)
    assert np.array_equal(piece.radius, own.radius) and told[-1] == 250


def test_the_runner_up_is_the_class_with_most_other_votes(folder):
    ensemble = fit(X[:300], Y[:300], k=8, learner=ClassMean(features=Pixels()))
    count = voting.Count("plurality", General(), None)
    (piece,) = voting.pieces(ensemble, X[300:350], count, None, lambda n: None)
    votes = ensemble.votes(X[300:350]).labels
    for row in range(50):
        counts = np.bincount(votes[:, row], minlength=10)
        assert counts[piece.prediction[row]] == counts.max() == piece.first[row]
        assert counts[piece.runner_up[row]] == piece.second[row]
        assert piece.runner_up[row] != piece.prediction[row]


def cut_off(monkeypatch, after, **options):
    """A run that is stopped when so many pieces are kept."""
    monkeypatch.setattr(voting, "rows_of_a_piece", lambda *_: 10)
    kept_runs.cut_off(monkeypatch, after, lambda: run_into(plan_of(**options), "out"))


def test_a_run_goes_on_where_it_was_cut_off(folder, monkeypatch):
    cut_off(monkeypatch, 3)
    assert os.listdir("out") == [".work"] and len(os.listdir("out/.work")) == 4
    with pytest.raises(UsageError, match="--resume"):
        run_into(plan_of(), "out")
    report = run_into(plan_of(), "out", resume=True)
    assert report.document["pieces_reused"] == 3
    fresh = run(plan_of())
    for name, column in fresh.columns.items():
        assert np.array_equal(column, report.columns[name])
    assert ".work" not in os.listdir("out") and len(os.listdir("out")) == 3


def test_a_damaged_piece_is_computed_again(folder, monkeypatch):
    cut_off(monkeypatch, 3)
    pieces = sorted((folder / "out" / ".work").glob("piece-*"))
    data = bytearray(pieces[1].read_bytes())
    data[-40] ^= 1
    pieces[1].write_bytes(data)
    pieces[2].write_bytes(pieces[2].read_bytes()[:50])
    report = run_into(plan_of(), "out", resume=True)
    assert report.document["pieces_reused"] == 1
    assert np.array_equal(report.columns["radius"], run(plan_of()).columns["radius"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"k": 9}, "partition.k is 9, there it was 8"),
        ({"salt": "s"}, "partition.rule.salt_digest"),
        ({"features": "deskew"}, "learner.settings.features"),
        ({"learner": "neighbours"}, "learner.name is 'Neighbours'"),
        ({"scheme": "roe"}, "rule is 'run_off'"),
        ({"test": "train.npz"}, "test.fingerprint"),
        ({"data": "test.npz"}, "data.fingerprint"),
        ({"classes": 11}, "num_classes is 11, there it was 10"),
    ],
)
def test_votes_of_another_plan_are_refused_with_the_difference(folder, monkeypatch, changed, words):
    cut_off(monkeypatch, 1)
    before = sorted(os.listdir("out/.work"))
    with pytest.raises(UsageError, match="work of another run") as error:
        run_into(plan_of(**changed), "out", resume=True)
    assert words in str(error.value)
    assert sorted(os.listdir("out/.work")) == before


def test_votes_under_other_keys_are_refused(folder, monkeypatch):
    """The same rows in other cells: only the digest of the subsets tells."""
    np.save("key.npy", np.arange(300) // 10)
    cut_off(monkeypatch, 1, key="key.npy")
    np.save("key.npy", np.random.default_rng(0).permutation(300) // 10)
    with pytest.raises(UsageError, match="subsets"):
        run_into(plan_of(key="key.npy"), "out", resume=True)


def test_votes_that_lost_their_plan_serve_no_other(folder, monkeypatch):
    cut_off(monkeypatch, 3)
    (folder / "out" / ".work" / "plan.json").unlink()
    report = run_into(plan_of(learner="neighbours"), "out", resume=True)
    assert report.document["pieces_reused"] == 0
    fresh = run(plan_of(learner="neighbours"))
    assert np.array_equal(report.columns["radius"], fresh.columns["radius"])


def test_a_key_of_the_labels_is_refused(folder):
    with pytest.raises(UsageError, match="holds the labels"):
        run(plan_of(key="y"))
    with np.load(plan_of().data) as held:
        x, names = held["x"], np.array(["cat", "dog", "eel"])[held["y"] % 3]
    np.savez("named.npz", x=x, y=names)
    with pytest.raises(UsageError, match="holds the labels"):
        open_data(plan_of(data="named.npz", key="y"))


@pytest.mark.parametrize("options", [{"decimals": 0}, {"key": "key.npy"}])
def test_large_floats_are_split_too(folder, options):
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32) * 1e12
    np.savez("floats.npz", x=x, y=Y[:300])
    np.save("key.npy", np.arange(300) // 10)
    held = open_data(plan_of(data="floats.npz", test="split:0.3", **options)).test.index
    again = open_data(plan_of(data="floats.npz", test="split:0.3", **options)).test.index
    assert 40 < len(held) < 140 and np.array_equal(held, again)


def test_resuming_nothing_is_a_run(folder):
    report = run_into(plan_of(), "out", resume=True)
    assert report.document["pieces_reused"] == 0 and len(os.listdir("out")) == 3
    with pytest.raises(UsageError, match="already holds"):
        run_into(plan_of(), "out", resume=True)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_plan_is_told(folder, text):
    work = folder / "out" / ".work"
    work.mkdir(parents=True)
    (work / "plan.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"remove .*work"):
        saved_identity(folder / "out")


def test_differences_are_named_by_their_place():
    assert difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 1, there it was 2"
    assert difference({"a": 1}, {}) == "a is 1, there it was None"


def test_names_of_classes_are_matched(folder):
    names = np.array(["cat", "dog", "eel"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)

    def write(path, labels):
        rows = list(rng.integers(0, 9, (len(labels), 5)).astype(np.float32))
        pq.write_table(pa.table({"x": rows, "label": labels}), path)

    write("train.parquet", names[rng.integers(0, 3, 60)])
    write("test.parquet", ["eel", "dog", "yak", "eel"])  # no cat, and one that nobody knows
    plan = plan_of(data="train.parquet", test="test.parquet", decimals=2)
    assert open_data(plan).test.y.tolist() == [2, 1, -1, 2]
    report = run(plan)
    assert report.columns["label"].mask.tolist() == [False, False, True, False]
    shown = {entry["index"]: entry for entry in report.document["least_certain"]}
    assert shown[0]["label_name"] == "eel" and shown[2]["label"] is None
    assert "cat" in report.html()
    assert any("numbered by the names" in note for note in report.document["notes"])
    np.savez("numbers.npz", x=rng.integers(0, 9, (4, 5)).astype(np.float32), y=[0, 1, 2, 0])
    with pytest.raises(DataError, match="names"):
        open_data(plan_of(data="train.parquet", test="numbers.npz", decimals=2))


def test_rows_that_are_not_finite_are_named(folder):
    x = np.ones((20, 3), np.float32)
    x[7, 1] = np.nan
    np.savez("bad.npz", x=x, y=np.arange(20) % 2)
    with pytest.raises(DataError, match="row 7 has NaN"):
        run(plan_of(data="bad.npz", test="split:0.5", decimals=2))


def test_labels_that_can_not_be_read_are_a_note(folder):
    np.savez("odd.npz", x=X[300:310], z=Y[300:310])
    report = run(plan_of(test="odd.npz"))
    assert "label" not in report.columns
    assert any("labels of the test rows are not known" in n for n in report.document["notes"])
    np.save("y.npy", Y[300:309])
    with pytest.raises(DataError, match="9 labels for 10 rows"):
        run(plan_of(test="odd.npz", test_labels="y.npy"))


def test_notes_tell_what_hangs_on_the_data(folder):
    given = run(plan_of(classes=10)).document["notes"]
    assert given == []
    taken = run(plan_of(k=None, test="split:0.2")).document["notes"]
    assert len(taken) == 3 and any("--k" in note for note in taken)


def test_time_windows(folder):
    np.save("when.npy", np.arange(300) * 60)
    plan = plan_of(key="when.npy", window=3600.0, threat="general")
    parts = subsets_of(plan, open_data(plan))
    assert len(set(parts.cell[:60].tolist())) == 1 and len(set(parts.cell.tolist())) == 5
    assert parts.design.covers == "key column"


def test_a_forecast_is_of_the_run(folder):
    found = forecast(plan_of())
    assert found["rows"] == 300 and found["tests"] == 50 and found["k"] == found["subsets"] == 8
    assert found["seconds"] > 0 and found["bytes"] > 0
    at = {each["k"]: each for each in found["profile"]}
    assert at[8]["clean"] > 0.6 and at[8]["median"] >= 1
    assert at[8]["median"] <= 4  # never beyond half of the models
    few = forecast(plan_of(data="test.npz", test="train.npz", k=45))
    assert few["profile"] is None and "too few of 50 rows" in few["left_out"]
