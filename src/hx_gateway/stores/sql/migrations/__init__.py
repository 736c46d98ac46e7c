"""The steps by which the schema came to be, in order; each is frozen once released."""
