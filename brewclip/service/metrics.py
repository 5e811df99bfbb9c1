"""Metrics of one ingress for Prometheus: requests, what is in flight, batch sizes, and the time of each stage."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from brewclip.service.engine import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """The metrics, in a registry of their own.

    Args:
        replica: distinguishes several ingresses behind one address, whose counters must not be taken for one.
    """

    def __init__(self, replica: str = "0") -> None:
        self._registry = CollectorRegistry()
        self.replica = replica
        self._requests = Counter(
            "brewclip_requests", "Answered requests.", ("replica", "route", "status"), registry=self._registry
        )
        self._seconds = self._histogram("brewclip_request_seconds", "Time to answer a request.", "route")
        self._stages = self._histogram("brewclip_stage_seconds", "Time of each stage of a search.", "stage")
        self._batches = Histogram(
            "brewclip_batch_size",
            "Queries that were answered together.",
            ("replica",),
            registry=self._registry,
            buckets=_SIZES,
        )
        self.in_flight = Gauge(
            "brewclip_searches_in_flight", "Searches queued or worked on.", ("replica",), registry=self._registry
        ).labels(replica)

    def _histogram(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(name, text, ("replica", label), registry=self._registry, buckets=_SECONDS)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(self.replica, route, str(status)).inc()
        self._seconds.labels(self.replica, route).observe(seconds)

    def add_search(self, answer: Answer, timing_seconds: dict[str, float]) -> None:
        """Add the stages and the batch of a search."""
        self._batches.labels(self.replica).observe(answer.batch_size)
        for stage, seconds in timing_seconds.items():
            self._stages.labels(self.replica, stage).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
