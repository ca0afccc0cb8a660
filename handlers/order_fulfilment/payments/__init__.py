"""The payments service: charges and refunds through a provider outside, and keeps the books of it."""
