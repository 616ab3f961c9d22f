"""The journal: the durable, ordered log on our side of every transaction received from a source."""
