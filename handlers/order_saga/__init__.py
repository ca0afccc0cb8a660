"""Order fulfilment once more, as a saga: somebody is in charge, the services obey commands."""
