"""The stages of the pipeline, one purpose each."""
