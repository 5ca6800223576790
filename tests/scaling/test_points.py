"""A user's mistakes are named, with the mend."""

import gzip
import json

import numpy as np
import pytest

from puna.errors import PunaError
from puna.scaling.points import Columns, make_points, read_points

TOKENS = np.geomspace(1e9, 1e11, 6)
PARAMS = np.geomspace(1e8, 1e9, 6)
LOSS = np.linspace(3.5, 2.8, 6)


def test_the_third_quantity_follows():
    flops = 6 * PARAMS * TOKENS
    np.testing.assert_allclose(make_points(params=PARAMS, tokens=TOKENS, loss=LOSS).flops, flops)
    np.testing.assert_allclose(make_points(params=PARAMS, flops=flops, loss=LOSS).tokens, TOKENS)
    np.testing.assert_allclose(make_points(tokens=TOKENS, flops=flops, loss=LOSS).params, PARAMS)


def test_flops_that_count_more_are_kept_and_told():
    points = make_points(params=PARAMS, tokens=TOKENS, flops=7.5 * PARAMS * TOKENS, loss=LOSS)
    assert points.flops_per_param_token == pytest.approx(7.5)
    assert any("7.5 FLOPs for each parameter and token" in warning for warning in points.warnings)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -2.0, 0.0])
def test_impossible_losses_name_the_row(bad):
    loss = LOSS.copy()
    loss[2] = bad
    with pytest.raises(PunaError, match="row 3") as error:
        make_points(params=PARAMS, tokens=TOKENS, loss=loss)
    assert "--drop-invalid" in str(error.value)
    dropped = make_points(params=PARAMS, tokens=TOKENS, loss=loss, drop_invalid=True)
    assert dropped.row.tolist() == [1, 2, 4, 5, 6]
    assert "left out 1 rows" in dropped.warnings[0]


MISTAKES = {
    "billions": ({"params": PARAMS / 1e9, "tokens": TOKENS}, "plain units"),
    "tokens in billions": ({"params": PARAMS, "tokens": TOKENS / 1e9}, "plain units"),
    "logarithms": ({"params": np.log10(PARAMS), "tokens": TOKENS}, "logarithms"),
    "mixed": ({"params": np.where(np.arange(6) < 2, PARAMS / 1e9, PARAMS), "tokens": TOKENS}, "mixes units"),
    "flops off": ({"params": PARAMS, "tokens": TOKENS, "flops": 6e3 * PARAMS * TOKENS}, "6ND"),
    "PF-days": ({"params": PARAMS, "tokens": TOKENS, "flops": 6 * PARAMS * TOKENS / 8.64e19 * 1e12}, "6ND"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_units_are_checked(mistake):
    columns, said = MISTAKES[mistake]
    with pytest.raises(PunaError, match=said):
        make_points(loss=LOSS, **columns)


def test_swapped_columns_are_named(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("n_params,n_tokens,loss\n" + "".join(f"{p},{t},{x}\n" for p, t, x in zip(PARAMS, TOKENS, LOSS)))
    with pytest.raises(PunaError, match="tokens are not parameters"):
        read_points(table, Columns(params="n_tokens", tokens="n_params"))
    swapped = make_points(params=TOKENS, tokens=PARAMS, loss=LOSS)
    assert any("swapped" in warning for warning in swapped.warnings)


def test_perplexity_is_suspected():
    points = make_points(params=PARAMS, tokens=TOKENS, loss=np.exp(LOSS))
    assert any("perplexity" in warning for warning in points.warnings)


def test_usual_names_are_found_and_others_asked_for(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("Model Size,Training FLOP,loss\n1e8,6e17,3.5\n2e8,2.4e18,3.2\n")
    assert read_points(table).tokens.tolist() == pytest.approx([1e9, 2e9])
    table.write_text("knobs,Training FLOP,loss\n1e8,6e17,3.5\n2e8,2.4e18,3.2\n")
    with pytest.raises(PunaError, match="knobs, Training FLOP, loss"):
        read_points(table)
    assert len(read_points(table, Columns(params="knobs"))) == 2
    with pytest.raises(PunaError, match="no column 'size'"):
        read_points(table, Columns(params="size"))


def test_rows_are_chosen_by_value(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("params,tokens,loss,split\n1e8,1e9,3.5,val\n1e8,1e9,3.4,train\n")
    assert read_points(table, Columns(where={"split": "train"})).loss.tolist() == [3.4]
    with pytest.raises(PunaError, match="there are train, val"):
        read_points(table, Columns(where={"split": "test"}))


def test_json_lines_gzipped_with_lists(tmp_path):
    """One row for each budget, its runs as lists, as Porian et al. publish them."""
    table = tmp_path / "runs.jsonl.gz"
    with gzip.open(table, "wt") as handle:
        for budget in (6e17, 6e18):
            n = [1e8, 2e8]
            row = {"flops": budget, "n": n, "tokens": [budget / 6 / x for x in n], "loss": [3.0, 3.1], "seed": 1}
            handle.write(json.dumps(row) + "\n")
    points = read_points(table)
    assert points.params.tolist() == [1e8, 2e8, 1e8, 2e8]
    assert points.flops.tolist() == [6e17, 6e17, 6e18, 6e18]


def test_columns_inside_nested_json(tmp_path):
    table = tmp_path / "runs.jsonl"
    rows = [{"params": 1e8 * n, "tokens": 1e9, "results": [{"loss": 9.9}, {"loss": 3.0 + n}]} for n in (1, 2)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_points(table, Columns(loss="results.1.loss")).loss.tolist() == [4.0, 5.0]
    with pytest.raises(PunaError, match=r"results\.2\.loss"):
        read_points(table, Columns(loss="results.2.loss"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "params,tokens,loss\n1e8,1e9,three\n", "not a number"),
        ("a.csv", "params,tokens,loss\n", "no rows"),
        ("a.json", "{", "not a readable"),
        ("a.json", '{"params": 1}', "list of objects"),
        ("a.txt", "1 2 3", "suffix"),
        ("a.csv.gz", "not gzip", "not a readable"),
    ],
)
def test_unreadable_tables(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(PunaError, match=said):
        read_points(tmp_path / name)


def test_missing_table(tmp_path):
    with pytest.raises(PunaError, match="no table at"):
        read_points(tmp_path / "none.csv")
