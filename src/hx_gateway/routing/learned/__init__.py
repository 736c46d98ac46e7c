"""Learned quality: how likely each model's answer to a prompt is good enough, and how far that can be believed."""
