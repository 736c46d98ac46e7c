"""Which deployment gets a request, and why."""
