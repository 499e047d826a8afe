"""Prometheus metrics of the service, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Telemetry:
    """Counters a reconciler fills; gauges are set when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.transitions = Counter(
            "mcf_run_transitions_total", "State changes of runs.", ["state"], registry=self.registry
        )
        self.submissions = Counter("mcf_submissions_total", "Attempts submitted.", registry=self.registry)
        self.attempts_ended = Counter(
            "mcf_attempts_ended_total", "Attempts by how they ended.", ["state"], registry=self.registry
        )
        self.look_seconds = Histogram("mcf_look_seconds", "One look at one run.", registry=self.registry)
        self.look_errors = Counter(
            "mcf_look_errors_total", "Looks at a run that failed, by kind.", ["kind"], registry=self.registry
        )
        self.runs = Gauge("mcf_runs", "Runs by state.", ["state"], registry=self.registry)
        self.tracking_up = Gauge("mcf_tracking_up", "1 while MLflow answers.", registry=self.registry)
        self.last_tick = Gauge(
            "mcf_last_tick_timestamp_seconds", "When the reconciler last looked for work.", registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
