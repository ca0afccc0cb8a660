"""The notifications service: what the customer is told, and when."""
