"""What families of text-to-image pipelines differ in, and how their folders are read. t = 0 is clean, t = 1 noise."""
