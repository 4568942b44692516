"""Recipes: locked configs whose keys are declared in instructjax/recipe."""
