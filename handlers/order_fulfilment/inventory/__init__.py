"""The inventory service: holds goods for orders, releases them or sees them leave."""
