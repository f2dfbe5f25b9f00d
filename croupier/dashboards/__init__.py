"""Streamlit pages that read the lake; a person's judgements go through the service."""
