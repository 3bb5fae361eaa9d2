"""The table of the benchmarks' lines."""

import json

import pytest

from benchmarks import results_table, timing


def test_a_row_has_setting_medians_and_figures(tmp_path, capsys):
    steady = {"ours": timing.Timing.of([1e-3] * 5), "peer": timing.Timing.of([2e-3] * 5)}
    restless = steady | {"peer": timing.Timing.of([1e-3, 1e-3, 1e-3, 9.0, 9.0])}
    path = tmp_path / "lines.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "kind": "measurement",
                    "name": "mask_op",
                    "shape": "skewed",
                    "documents": 1_000_000,
                    "batch": None,
                    "cores": 1,
                    **timing.line(timings, lambda: {"speedup": 2.0}),
                }
            )
            for timings in (steady, restless)
        )
    )
    assert results_table.main([str(path)]) == 0
    header, rule, row, blank, left_out = capsys.readouterr().out.splitlines()
    assert (header.count("|"), rule.count("|"), blank) == (5, 5, "")
    assert row == (
        "| mask_op | shape skewed, documents 1,000,000 | ours 1 ms, peer 2 ms | speedup 2 |"
    )
    assert left_out.startswith("1 unreliable")


def test_what_is_no_measurement_is_named():
    with pytest.raises(ValueError, match=r"line 2: expected a measurement, found '\[3\]'"):
        results_table.rows(['{"name": "jump"}', "[3]"])
