"""Pretraining: recipe, corpus, views, task, and what is written at the end."""
