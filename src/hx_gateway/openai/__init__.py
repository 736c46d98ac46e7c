"""The dialect clients speak, without any I/O."""
