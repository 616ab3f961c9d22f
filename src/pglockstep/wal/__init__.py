"""What arrives from a source: frames of the replication stream and pgoutput's messages, decoded without I/O."""
