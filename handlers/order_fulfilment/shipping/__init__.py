"""The shipping service: hands paid orders to a carrier, tries again when it is delayed, gives up in the end."""
