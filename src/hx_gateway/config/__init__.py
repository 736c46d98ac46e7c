"""What the operator wrote: schema, loading, environment."""
