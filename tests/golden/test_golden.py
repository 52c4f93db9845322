"""The pack for authors of kernels: written whole, equal for equal seeds, right by an independent route, and its script
finds what is wrong."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinymoe.errors import UserError
from tinymoe.golden import __main__ as golden
from tinymoe.golden.agreements import Convention
from tinymoe.golden.cases import CASES, draw
from tinymoe.golden.solve import choose, solve

NAMES = list(CASES)
every_case = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def folder(files, tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def load(data):
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def compare(folder, *names):
    """Run compare.py where of all that is not the standard library only NumPy can be imported."""
    libraries = folder.parent / "libraries"
    libraries.mkdir(exist_ok=True)
    for found in Path(np.__file__).parents[1].glob("numpy*"):
        if not (libraries / found.name).exists():
            (libraries / found.name).symlink_to(found)
    environment = os.environ | {"PYTHONPATH": str(libraries), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-W", "error", "compare.py", *names]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def with_kernel(folder, body):
    """Put a kernel in the place of the shipped one, which it may call."""
    script = folder / golden.COMPARE
    shipped = script.read_text().replace("def kernel", "def shipped")
    script.write_text(shipped.replace("\n\ndef main", f"\n\ndef kernel(case):\n    {body}\n\n\ndef main"))


# --- what is written ---------------------------------------------------------------------------------------------------


def test_the_command_writes_the_pack_and_its_script_agrees_with_it(files, tmp_path, capsys):
    out = tmp_path / "new" / "pack"
    assert golden.main(["--out", str(out)]) == 0
    assert f"{len(NAMES)} cases" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    result = compare(out)
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [*NAMES, str(len(NAMES))]


def test_equal_seeds_give_equal_bytes_and_others_do_not(files):
    assert dict(golden.pack(0)) == files
    other = dict(golden.pack(1))
    assert list(other) == list(files)
    assert [name for name in files if other[name] == files[name]] == [golden.COMPARE]


def test_a_case_does_not_depend_on_the_others():
    """Its numbers come from its name, so that adding a case leaves all vectors as they were."""
    before = draw("swiglu", 3)
    draw("relu", 3)
    for name, array in draw("swiglu", 3).items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.array_equal(draw("z_loss", 3)["x"], before["x"])


@every_case
def test_the_manifest_is_true_of_the_files(name, files, manifest):
    entry = manifest["cases"][name]
    assert hashlib.sha256(files[entry["file"]]).hexdigest() == entry["sha256"]
    arrays = load(files[entry["file"]])
    stated = entry["given"] | entry["expected"]
    assert {key: [str(a.dtype), *a.shape] for key, a in arrays.items()} == stated
    assert len(stated) == len(entry["given"]) + len(entry["expected"])
    assert not set(stated) & set(entry["convention"]), "a kernel gets both under their names"
    letters = {"K": entry["convention"]["k"], "E": entry["convention"]["experts"]}
    letters |= {"E+1": letters["E"] + 1, "NK": len(arrays["x"]) * letters["K"]}
    for key, array in arrays.items():
        shape = manifest["arrays"][key if key in manifest["arrays"] else key.removeprefix("d")].partition(")")[0]
        axes = [axis.strip() for axis in shape.strip("(").split(",") if axis.strip()]
        assert [letters.setdefault(axis, n) for axis, n in zip(axes, array.shape, strict=True)] == list(array.shape)


def test_every_described_array_is_in_some_case(manifest):
    found = {key for entry in manifest["cases"].values() for key in entry["given"] | entry["expected"]}
    assert set(manifest["arrays"]) <= found


@every_case
def test_given_arrays_are_bfloat16_numbers_and_nan_stands_in_padding_only(name, files, manifest):
    arrays = load(files[f"{name}.npz"])
    mask = arrays.get("mask", np.ones(len(arrays["x"]), bool))
    for key, array in arrays.items():
        if key in manifest["cases"][name]["given"] and array.dtype == float:
            single = array.astype(np.float32)
            np.testing.assert_array_equal(single, array)
            assert not (single.view(np.uint32) & 0xFFFF)[~np.isnan(single)].any()
        array = array[mask] if key in ("x", "dy") else array
        assert np.isfinite(array).all(), key


def test_words_follow_the_fields(manifest):
    """Two cases whose conventions differ say different things, and fields that matter are said."""
    said: dict[str, list[str]] = {}
    for name, entry in manifest["cases"].items():
        said.setdefault(" ".join(entry["words"]), []).append(json.dumps(entry["convention"]))
        assert "{" not in " ".join(entry["words"]), name
    assert all(len(set(conventions)) == 1 for conventions in said.values())


# --- each case shows what it is there for ------------------------------------------------------------------------------


def test_cases_show_what_they_are_there_for(files):
    case = {name: load(files[f"{name}.npz"]) for name in NAMES}
    counts = {name: np.diff(c["offsets"]) for name, c in case.items()}
    assert not counts["idle_experts"][[1, 6]].any()
    assert not case["idle_experts"]["dup"][[1, 6]].any()
    assert counts["all_to_one"].tolist() == [0, 0, 24, 0, 0, 0, 0, 0]
    assert not case["top1_normalized"]["drouter"].any()
    assert case["switch"]["drouter"].all()
    assert counts["all_experts"].tolist() == [24] * 5
    assert len(case["few_tokens"]["x"]) == 3
    assert case["no_tokens"]["y"].shape == (0, 16)
    logits = case["ties"]["logits"]
    ranked = -np.sort(-logits, 1)
    assert (logits == np.round(logits)).all()
    assert (ranked[:, 1] == ranked[:, 2]).sum() >= 3, "who is second is a matter of the tie rule"
    x, y = case["duplicates"]["x"], case["duplicates"]["y"]
    assert (x[:6] == x[6:12]).all()
    np.testing.assert_allclose(y[:6], y[6:12], rtol=1e-14)
    for name in ("over_capacity", "over_capacity_normalized", "padding_over_capacity"):
        assert counts[name].max() == 4
        real = case[name].get("mask", np.ones(24, bool))
        assert not case[name]["kept"][real].all()
        assert not case[name]["weights"][~case[name]["kept"]].any()
    sums = case["over_capacity_normalized"]["weights"].sum(1)
    np.testing.assert_allclose(sums[sums > 0], 1)
    assert case["over_capacity"]["weights"].sum(1).min() < 0.99
    for key in ("y", "dx", "dlogits", "weights"):
        assert not case["padding"][key][~case["padding"]["mask"]].any()
    c = case["deepseek_v3"]
    score = 1 / (1 + np.exp(-c["logits"]))
    for free in (score, score + c["bias"]):  # both the bias and the limit on groups change choices
        assert (np.sort(np.argsort(-free, 1)[:, :3]) != np.sort(c["indices"])).any()
    clean = np.argsort(-case["noisy"]["logits"], 1)[:, :2]
    assert (clean != case["noisy"]["indices"]).any()
    chosen = case["expert_choice"]["kept"]
    assert chosen.sum(0).tolist() == [6] * 8
    assert chosen.sum(1).max() > 3
    assert len(case["long"]["x"]) == 512


@every_case
def test_scores_may_be_off_by_half_the_margin_and_not_by_more(name, manifest):
    """Push neighbours in rank towards each other, by a bit less than half of it each, and by a bit more."""
    gap, case = manifest["cases"][name]["margin"], CASES[name]
    if not gap:
        assert name in ("ties", "no_tokens")
        return
    given = draw(name, 0)
    results = solve(given, case.convention)
    real = given.get("mask", np.ones(case.tokens, bool))
    logits, noise = results["logits"][real], 0
    if name == "noisy":
        noise = given["noise"] * (np.log1p(np.exp(results["spread"])) + 0.01)
    even_rank = np.argsort(np.argsort(-(logits + noise), 1), 1) % 2 == 0

    def choices(push):
        shift = np.where(even_rank, -push, push) * gap + noise
        convention = Convention() if name == "noisy" else case.convention
        (_, indices, chosen), _ = choose(logits + shift, given, convention)
        return [*indices.flat, *chosen.flat]

    right = choices(0)
    assert choices(0.49) == choices(-0.49) == right
    if case.convention.routing in ("softmax", "noisy"):  # elsewhere the margin is one of other scores
        assert choices(0.51) != right or choices(-0.51) != right


def test_margins_of_choices_that_are_not_among_logits(files, manifest):
    """By hand: the sixth and the seventh token of each expert; DeepSeek-V3's second and third group, and its experts."""
    z = load(files["expert_choice.npz"])["logits"]
    ranked = -np.sort(-np.exp(z) / np.exp(z).sum(1, keepdims=True), 0)
    assert manifest["cases"]["expert_choice"]["margin"] == pytest.approx((ranked[5] - ranked[6]).min(), rel=1e-9)
    c, gaps = load(files["deepseek_v3.npz"]), []
    for free in 1 / (1 + np.exp(-c["logits"])) + c["bias"]:
        groups = sorted((sorted(group)[::-1] for group in free.reshape(4, 4)), key=lambda group: -group[0] - group[1])
        gaps.append(sum(groups[1][:2]) - sum(groups[2][:2]))
        gaps.extend(-np.diff(sorted(groups[0] + groups[1])[:-5:-1]))
    assert manifest["cases"]["deepseek_v3"]["margin"] == pytest.approx(min(gaps), rel=1e-9)


# --- the numbers are right ---------------------------------------------------------------------------------------------


@every_case
def test_gradients_are_derivatives_of_the_objective(name):
    """By central differences, for all given arrays at once along a random direction. Across ties there is no derivative."""
    case, rng = CASES[name], np.random.default_rng(6)
    given = draw(name, 2)
    gradients = solve(given, case.convention)
    inputs = [key for key in given if f"d{key}" in gradients and not (name == "ties" and key in ("x", "router"))]
    assert {"up", "down"} <= set(inputs)
    direction = {key: rng.standard_normal(given[key].shape) for key in inputs}
    step = 1e-6
    ends = (
        solve(given | {key: given[key] + sign * step * v for key, v in direction.items()}, case.convention)
        for sign in (1, -1)
    )
    slope = np.subtract(*(end["objective"] for end in ends)) / (2 * step)
    expected = sum(np.vdot(gradients[f"d{key}"], v) for key, v in direction.items())
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-7)


@every_case
def test_the_order_of_experts_fits_choices_and_outputs(name, files):
    """offsets, order, inverse and outputs, checked one assignment at a time."""
    case = load(files[f"{name}.npz"])
    k = case["kept"].shape[1]
    sorted_by_hand = sorted(np.flatnonzero(case["kept"]).tolist(), key=lambda m: (case["indices"].flat[m], m))
    assert case["order"].tolist() == sorted_by_hand
    expert = case["indices"].reshape(-1)[case["order"]]
    for e in range(len(case["up"])):
        assert (expert[case["offsets"][e] : case["offsets"][e + 1]] == e).all()
    assert case["offsets"][-1] == len(case["order"])
    places = {m: place for place, m in enumerate(sorted_by_hand)}
    assert case["inverse"].tolist() == [places.get(m, len(places)) for m in range(case["kept"].size)]
    if name != "shared_expert":
        y = np.zeros_like(case["y"])
        for m, place in places.items():
            y[m // k] += case["weights"].flat[m] * case["outputs"][place]
        np.testing.assert_allclose(case["y"], y, rtol=1e-12, atol=1e-14)


# --- the script finds what is wrong ------------------------------------------------------------------------------------


def test_a_damaged_or_missing_file_is_noticed(folder):
    file = folder / "switch.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for _ in range(2):
        result = compare(folder, "relu", "switch")
        assert result.returncode == 1
        assert "switch.npz is missing or damaged" in result.stderr
        file.unlink(missing_ok=True)
    assert compare(folder, "relu").returncode == 0
    unknown = compare(folder, "relu", "rellu")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no case rellu; there are swiglu, relu, " in unknown.stderr


@pytest.mark.parametrize(
    "body",
    [
        "return {'y': shipped(case)['y'] + 1e-10}",
        "return {'y': shipped(case)['y'] * np.nan}",
        "return {'y': shipped(case)['y'][None]}",
        "return {'indices': case['indices'][:, ::-1]}",
        "return {'kept': ~case['kept']}",
        "case['y'][:] = 0; return {'y': case['y']}",  # a kernel that writes into what is expected of it
        "return {'dx': np.zeros_like(case['x'])}",
        "return {}",
    ],
)
def test_a_wrong_kernel_is_noticed(folder, body):
    with_kernel(folder, body)
    result = compare(folder, "swiglu")
    assert (result.returncode, result.stderr) == (1, "")
    assert "WRONG" in result.stdout or "0 arrays compared" in result.stdout


def test_a_right_kernel_may_return_all_it_has(folder):
    arrays = "{name: a for name, a in case.items() if isinstance(a, np.ndarray) and name not in ('x', 'dy')}"
    with_kernel(folder, f"return {arrays} | shipped(case)")
    result = compare(folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout.splitlines()[-1].split()[0]) > 300


# --- the command -------------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_not_touched(folder, files, tmp_path):
    with pytest.raises(UserError, match="is not empty; replace its pack with --overwrite"):
        golden.main(["--out", str(folder)])
    for name in ("notes.txt", golden.MANIFEST):
        foreign = tmp_path / name.partition(".")[0]
        foreign.mkdir()
        (foreign / name).write_text("{}")
        with pytest.raises(UserError, match="no pack"):
            golden.main(["--out", str(foreign), "--overwrite"])
        assert [file.name for file in foreign.iterdir()] == [name]


def test_a_pack_is_overwritten_when_asked_for_but_not_a_kernel(folder, files):
    golden.main(["--out", str(folder), "--overwrite", "--seed", "1"])
    assert (folder / "swiglu.npz").read_bytes() != files["swiglu.npz"]
    with_kernel(folder, "return {}")
    with pytest.raises(UserError, match="perhaps there is a kernel in it"):
        golden.main(["--out", str(folder), "--overwrite"])
    assert (folder / "swiglu.npz").read_bytes() != files["swiglu.npz"]


def test_a_pack_cut_short_has_only_whole_files_is_recognised_and_can_be_completed(files, tmp_path, monkeypatch):
    written: list[str] = []

    def until_the_disk_is_full(path, data):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(golden, "write_atomically", until_the_disk_is_full)
        with pytest.raises(UserError, match="No space left on device; choose another --out"):
            golden.main(["--out", str(tmp_path / "pack")])
    assert written[0] == golden.MANIFEST
    assert all((tmp_path / "pack" / name).read_bytes() == files[name] for name in written)
    assert "missing or damaged" in compare(tmp_path / "pack").stderr
    golden.main(["--out", str(tmp_path / "pack"), "--overwrite"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "pack").iterdir()} == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["--seed", "x"], "invalid int value: 'x' .see python -m tinymoe.golden --help"),
        (["--out", __file__], "can't write to .*test_golden.py: File exists; choose another --out"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        golden.main(["--out", str(tmp_path / "pack"), *arguments])
    assert not (tmp_path / "pack").exists()


def test_a_folder_must_be_named():
    with pytest.raises(UserError, match="--out"):
        golden.main([])
