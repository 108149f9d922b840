"""Training: pretraining from recipe to model folder, and fine-tuning of pretrained models."""
