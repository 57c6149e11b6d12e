"""Which replica a request goes to: the one with the fewest requests outstanding; of these the one with the fewest tokens, then the first.

Requests come first, since a replica has a place for each: with C in flight and N replicas none ever holds more than ceil(C / N), so
replicas of max_batch_size B serve N x B at once, as one engine of N x B would. Tokens (prompt and most output) break ties: of requests that
arrive together, a long one is followed by short ones elsewhere. Rejected: taking turns, which leaves places empty when lengths differ, and
tokens first, which queues requests at one replica while another has places free.
"""

from __future__ import annotations

import threading


class Dispatcher:
    """Counts what each of `replicas` has outstanding. May be used from any thread."""

    def __init__(self, replicas: int) -> None:
        self.requests = [0] * replicas
        self.tokens = [0] * replicas
        self._lock = threading.Lock()

    def take(self, tokens: int) -> int:
        """The replica for a request of so many tokens, which then is outstanding there."""
        with self._lock:
            replica = min(range(len(self.requests)), key=lambda one: (self.requests[one], self.tokens[one], one))
            self.requests[replica] += 1
            self.tokens[replica] += tokens
            return replica

    def done(self, replica: int, tokens: int) -> None:
        """A request that `take` was asked for has ended."""
        with self._lock:
            self.requests[replica] -= 1
            self.tokens[replica] -= tokens
