"""Everything that is not a hot route: FastAPI on the same port."""
