"""A build pipeline: lint, tests and build of a commit at once, somebody's approval, and then the deploy."""
