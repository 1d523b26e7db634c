"""Networks that turn pictures into features: Inception, DINOv2, CLIP, and how pictures come to their size."""
