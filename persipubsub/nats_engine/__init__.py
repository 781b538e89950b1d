"""The engine for clusters: it stores messages in the streams of NATS JetStream."""
