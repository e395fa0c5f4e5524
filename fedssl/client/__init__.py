"""What a client does in a round: receive, train, answer."""
