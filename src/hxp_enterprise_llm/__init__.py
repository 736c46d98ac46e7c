"""The import paths of before the gateway had its own name: each leads to a public name of `hx_gateway`, and nothing is made here."""
