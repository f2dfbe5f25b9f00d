"""Streamlit pages that read the lake; they never write, and never ask the service."""
