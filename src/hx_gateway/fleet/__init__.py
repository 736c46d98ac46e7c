"""Endpoints, deployments and the names in front of them."""
