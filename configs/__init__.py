"""Recipes: every key declared, with its unit and source, and locked."""
