"""The tables of docs/benchmarks.md are those of the results."""

import json

from benchmarks import tables


def side(rate, peak, again):
    return {"rate": rate, "seconds": 2.0, "cpu_seconds": 3.0, "peak_mb": peak, "peak_again_mb": again}


def results(**work):
    return {
        "title": "Size T",
        "command": "python experiments/benchmarks/speed.py --size=T",
        "machine": "two cores",
        "versions": {"jax": "1.2", "trl": "3.4"},
        "load": [0.5, 1.5, 2.25],
        "work": work,
    }


def test_a_table_has_rates_ratios_and_memory(tmp_path):
    medians = {"instructjax": side(3000.0, 512.0, 256.0), "trl": side(1500.0, 1024.0, 1024.0)}
    found = results(sft={"rounds": [], "medians": medians, "mfu": 0.456, "matmul_flops": 1e11})
    (tmp_path / "b.json").write_text(json.dumps(found))
    page = tables.page(tmp_path)
    assert "### Size T" in page and "load 0.5 before, 2.2 after." in page and "trl 3.4" in page
    line = "| sft | 3,000 tokens/s | 1,500 tokens/s | **2.00** | 0.46 | 2, 2 | 512, 1,024 | 256, 1,024 | 0.50 | 0.25 |"
    assert line in page


def test_a_side_alone_has_no_ratio(tmp_path):
    found = results(ppo={"rounds": [], "medians": {"instructjax": side(12.34, 9, 8)}, "mfu": 0.5, "matmul_flops": 1e11})
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert "| ppo | 12.3 episodes/s | 0.50 | 2 | 9 | 8 |" in tables.page(tmp_path)


def test_the_page_has_the_tables_of_the_results():
    path = tables.ROOT / "docs" / "benchmarks.md"
    before = path.read_text()
    assert tables.filled(before) == before
