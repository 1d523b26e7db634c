"""Layers and the token format that every network of the house is made of."""
