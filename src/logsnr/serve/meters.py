"""What Prometheus reads; no number tells a concept, a prompt or a token."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""With several workers, the folder in which they add up their numbers."""


class Meters:
    """The numbers of one worker, or of all through the shared folder."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("logsnr_requests", "Requests by answer", ["status"], registry=own)
        self.refusals = Counter("logsnr_refusals", "Requests refused at the gate", ["code"], registry=own)
        self.images = Counter("logsnr_images", "Images made", ["unlocked"], registry=own)
        self.unwritten = Counter("logsnr_audit_failures", "Decisions that could not be written down", registry=own)
        self.seconds = Histogram("logsnr_request_seconds", "Seconds from request to answer", registry=own)
        self.waiting = Gauge("logsnr_waiting", "Requests in the queue", registry=own, multiprocess_mode="livesum")
        self.running = Gauge("logsnr_running", "Requests sampled now", registry=own, multiprocess_mode="livesum")

    def text(self) -> bytes:
        """The numbers as Prometheus reads them."""
        if not os.environ.get(SHARED):
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        return generate_latest(everyone)
