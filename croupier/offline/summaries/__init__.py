"""Small tables made of the lake by the nightly job: what dashboards read instead of logs."""
