"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ModelMetrics:
    """The counts of one model."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.cached_tokens = metrics.cached_tokens.labels(model)
        self.generated_tokens = metrics.generated_tokens.labels(model)
        self.refused = metrics.refused.labels(model)
        self.first_token = metrics.first_token.labels(model)


class Metrics:
    """All counts of a server; a registry of its own, so that two servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ["model"]
        self.requests = self._counter("puna_requests", "HTTP requests answered.", ["path", "status"])
        self.seconds = Histogram(
            "puna_request_seconds", "Time of an HTTP request.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.prompt_tokens = self._counter("puna_prompt_tokens", "Tokens of prompts.", model)
        self.cached_tokens = self._counter("puna_cached_prompt_tokens", "Those found in the prefix cache.", model)
        self.generated_tokens = self._counter("puna_generated_tokens", "Tokens generated.", model)
        self.refused = self._counter("puna_refused", "Requests refused because the queue was full.", model)
        self.first_token = Histogram(
            "puna_first_token_seconds", "Time to a request's first token.", model, buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._gauges = {
            name: Gauge(f"puna_{name}", text, model, registry=self.registry)
            for name, text in {
                "running": "Sequences in the running batch.",
                "waiting": "Sequences that wait for a place in it.",
                "free_blocks": "Free blocks of the KV cache.",
                "total_blocks": "Blocks of the KV cache.",
            }.items()
        }

    def watch(self, model: str, engine: object) -> ModelMetrics:
        """Count for a model, and read its engine's state whenever Prometheus asks."""
        for name, gauge in self._gauges.items():
            gauge.labels(model).set_function(lambda name=name: getattr(engine, name))
        return ModelMetrics(self, model)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)
