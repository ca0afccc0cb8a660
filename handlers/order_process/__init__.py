"""Order fulfilment once more, as a process manager: a state machine in charge of the services that obey the saga."""
