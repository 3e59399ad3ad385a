"""The memo on the command line: what it holds and cost, whether it is whole, and what can go."""
