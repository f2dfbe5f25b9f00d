"""The scorer: a low-latency HTTP service that decides, logs and follows the registry."""
