"""JSON Schemas of events: written from the declarations, and what may change in them. Knows no broker or store."""
