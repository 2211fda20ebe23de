"""Many videos through one plan: a reader for each, a pool of threads that computes, and figures of every stream."""

from sparsetime.many.feed import Backoff, Clock, Feed, Video
from sparsetime.many.inbox import Inbox, Policy
from sparsetime.many.runner import Runner, run_many

__all__ = ["Backoff", "Clock", "Feed", "Inbox", "Policy", "Runner", "Video", "run_many"]
