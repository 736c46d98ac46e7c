"""What a request costs: the gateway beside other proxies, against the same scripted upstream, in one run."""
