"""A page that shows a plan at work on a video, served from this machine: what `sparsetime watch` does."""
