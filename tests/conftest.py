"""Fixtures of all tests."""

pytest_plugins = ("tests.kafka", "tests.ray_cluster")
