"""Schemathesis against a running server: requests made from its OpenAPI description, right ones and wrong ones.

    puna serve MODEL --blocks 24 --rows 16 --queue 16 &
    python benchmarks/fuzz_api.py http://127.0.0.1:8000 [--cases 10000] [--seed 0]

Few blocks keep the replies short. A reply of status 5xx, none within 120 s, an error that is not in OpenAI's form,
or /health other than 200 is a failure. Needs schemathesis.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

TIMEOUT = 120


@dataclass
class Report:
    cases: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.monotonic()
    report = fuzz(arguments.url, arguments.cases, arguments.seed)
    print(f"{report.cases:,} cases in {time.monotonic() - begun:.0f} s, the slowest {report.slowest:.1f} s")
    for (operation, status), count in sorted(report.statuses.items()):
        print(f"  {operation:32} {status}  {count:6,}")
    print(f"{len(report.failures)} failures")
    for failure in report.failures[:20]:
        print(f"- {failure}")
    sys.exit(bool(report.failures))


def fuzz(url: str, cases: int, seed: int = 0) -> Report:
    """Send `cases` requests, the same share to each operation and half of them against the description."""
    report = Report()
    schema = schemathesis.openapi.from_dict(described(url))
    jobs = []
    for operation in (result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)):
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation.body else [GenerationMode.POSITIVE]
        jobs += [(operation, mode) for mode in modes]
    with_body = [job for job in jobs if job[0].body]
    few = max(1, cases // 100)  # there is little to vary without a body
    many = -(-(cases - few * (len(jobs) - len(with_body))) // len(with_body))
    with requests.Session() as session:
        for operation, mode in jobs:
            send_many(operation.as_strategy(mode), many if operation.body else few, seed, url, session, report)
    return report


def described(url: str) -> dict[str, Any]:
    """The server's description, in which `model` is one that it has: any other is refused at once."""
    description = requests.get(f"{url}/openapi.json", timeout=TIMEOUT).json()
    (model, *_) = requests.get(f"{url}/v1/models", timeout=TIMEOUT).json()["data"]
    for schema in description["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"const": model["id"]}
    return description


def send_many(strategy: Any, count: int, seed: int, url: str, session: requests.Session, report: Report) -> None:
    # Hypothesis stops early where it has seen all there is; a new seed goes on.
    target, tried, check = report.cases + count, 0, hypothesis.HealthCheck
    while report.cases < target and tried < 100:

        @hypothesis.seed(seed + tried)
        @hypothesis.settings(
            max_examples=target - report.cases,
            database=None,
            deadline=None,
            suppress_health_check=[check.too_slow, check.filter_too_much, check.data_too_large],
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=strategy)
        def send(case: Case) -> None:
            if report.cases < target:
                send_one(case, url, session, report)

        send()
        tried += 1


def send_one(case: Case, url: str, session: requests.Session, report: Report) -> None:
    report.cases += 1
    begun = time.monotonic()
    try:
        reply = case.call(base_url=url, session=session, timeout=TIMEOUT)
    except requests.exceptions.RequestException as error:
        report.failures.append(f"{case.operation.label}: {error!r}: {shown(case)}")
        return
    report.slowest = max(report.slowest, time.monotonic() - begun)
    report.statuses[case.operation.label, reply.status_code] += 1
    if reply.status_code >= 500:
        report.failures.append(f"{case.operation.label}: {reply.status_code} {reply.text[:200]}: {shown(case)}")
    elif reply.status_code >= 400:
        try:
            assert isinstance(json.loads(reply.text)["error"]["message"], str)
        except Exception:
            report.failures.append(f"{case.operation.label}: {reply.status_code} {reply.text[:200]}: {shown(case)}")
    health = session.get(f"{url}/health", timeout=TIMEOUT).status_code
    if health != 200:
        report.failures.append(f"/health says {health} after {case.operation.label}: {shown(case)}")


def shown(case: Case) -> str:
    return f"{case.path_parameters} {case.query} {case.headers} {case.body!r}"[:2000]


if __name__ == "__main__":
    main()
