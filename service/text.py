"""Numbers, reasons and addresses as people read them, on the page and in the terminal."""

from datetime import UTC, datetime


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 days`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes // 1440} days"


def age(at: datetime) -> str:
    return f"{duration((datetime.now(UTC) - at).total_seconds())} ago"


def short(value: float | None) -> str:
    """Four significant digits at most, without a tail of zeros: 0.5, 1234, 2.4e-05; empty for None."""
    return "" if value is None else f"{value:.4g}"


def percent(share: float | None) -> str:
    """`18 %`; empty for None."""
    return "" if share is None else f"{share:.0%}".replace("%", " %")


def speed(images_per_second: float | None) -> str:
    """Images a second: `2,810`, and of slow ones three digits, `0.906`; empty for None."""
    if images_per_second is None:
        return ""
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.3g}"


def now_and_mean(now: float | None, mean: float | None) -> str:
    """Of images a second: `2,790 now, 2,810 on average`; empty where neither is known."""
    known = [(now, "now"), (mean, "on average")]
    return ", ".join(f"{speed(value)} {when}" for value, when in known if value)


def hours(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(num_bytes: int) -> str:
    """`512 B`, `3.4 kB`, `1,290.0 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    if num_bytes >= 1e10:
        return f"{num_bytes / 1e9:,.1f} GB"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:,.1f} MB"


def metric_name(name: str) -> str:
    """`nme diag` for probe/nme_diag. A stage's metric keeps its path: alignment/last/nme is not alignment/best/nme."""
    own = name.removeprefix("probe/").removeprefix("sanity/")
    return own if "/" in own else own.replace("_", " ")


def run_in_mlflow(tracking_uri: str | None, experiment_id: str | None, run_id: str | None) -> str | None:
    """Address of a run's page there, in the view for training: else MLflow opens with that for language models.

    None without MLflow, or while the run has no place there.
    """
    if not (tracking_uri and run_id):
        return None
    return f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def run_of_page(url: str) -> str:
    """The run id of an address that `run_in_mlflow` has made."""
    return url.rpartition("/")[2].partition("?")[0]


def count(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def first_line(text: str, length: int = 240) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= length else f"{line[: length - 3]}..."
