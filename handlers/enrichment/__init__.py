"""Leads about which three services are asked at once: a fork, and a join that waits ten seconds for them."""
