"""A fleet on a virtual clock: the real router over simulated model servers."""
