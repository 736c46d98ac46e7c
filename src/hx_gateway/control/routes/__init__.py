"""The control plane's routes, one file a subject."""
