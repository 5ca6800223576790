"""A hundred of schemathesis's requests; benchmarks/fuzz_api.py sends ten thousand."""

from benchmarks.fuzz_api import fuzz
from tests.serve.kit import random_engine, serving


def test_no_request_breaks_the_server():
    with serving(random_engine(max_len=192), most=8) as live:
        report = fuzz(live.url, cases=100, seed=1)
    assert report.cases >= 100
    assert not report.failures, report.failures[0]
