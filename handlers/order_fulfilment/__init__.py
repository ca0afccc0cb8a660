"""Order fulfilment: four services that know events and nothing of each other. `app.py` puts them together."""
